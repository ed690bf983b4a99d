//! The payment method types of an intent: those named in `payment_method_types`, the usable ones of
//! `allowed_payment_method_types`, or all that the account has activated and the currency allows.

use serde_json::{Value, json};

use super::api_error::ApiError;
use super::intent_status::is_manual;
use super::state::{flag, text};

/// The payment method types that are activated on every account.
const KINDS: [&str; 2] = ["card", "sepa_debit"];

/// The parameters that choose types. They exclude each other.
const CHOICES: [&str; 3] = ["allowed_payment_method_types", "automatic_payment_methods", "payment_method_types"];

/// Checks that the types exist, are activated, and are given once.
fn check_types(types: &Value) -> Result<(), ApiError> {
    let types: Vec<&str> = types.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if types.is_empty() {
        let message = "You must provide at least one payment method type.";
        return Err(ApiError::invalid(message).at("payment_method_types").before_execution());
    }
    for (at, kind) in types.iter().enumerate() {
        if types[..at].contains(kind) {
            let message = format!("The payment method type {kind} is given twice.");
            return Err(ApiError::invalid(message).at("payment_method_types").before_execution());
        }
        if !KINDS.contains(kind) {
            let message = format!(
                "The payment method type provided: {kind} is invalid. Please ensure the provided type is activated in \
                 your dashboard (https://dashboard.stripe.com/account/payments/settings)."
            );
            return Err(ApiError::invalid(message)
                .code("payment_method_unactivated")
                .at("payment_method_types")
                .before_execution());
        }
    }
    Ok(())
}

fn check_one_choice(params: &Value) -> Result<(), ApiError> {
    let given: Vec<&str> = CHOICES.into_iter().filter(|choice| params.get(choice).is_some()).collect();
    if given.len() < 2 {
        return Ok(());
    }
    let message = format!("You may only specify one of these parameters: {}.", given.join(", "));
    Err(ApiError::invalid(message).before_execution())
}

/// The allowed types that can be used. The others are left out without an error, but Stripe rejects an intent for which
/// no type is left.
fn usable(allowed: &Value, fits: impl Fn(&str) -> bool) -> Result<Value, ApiError> {
    let allowed = allowed.as_array().into_iter().flatten().filter_map(Value::as_str);
    let usable: Vec<&str> = allowed.filter(|kind| KINDS.contains(kind) && fits(kind)).collect();
    if usable.is_empty() {
        let message = "None of the payment method types in `allowed_payment_method_types` can be used: activate them in \
                       your dashboard, and check that they take the currency.";
        let api_error = ApiError::invalid(message).code("payment_intent_invalid_parameter");
        return Err(api_error.at("allowed_payment_method_types").before_execution());
    }
    Ok(json!(usable))
}

/// Whether the type supports the PaymentIntent's currency.
fn takes_currency(intent: &Value, kind: &str) -> bool {
    kind != "sepa_debit" || text(intent, "/currency") == "eur"
}

/// Whether the type can pay the PaymentIntent. Bank debits do not support manual capture.
fn fits(intent: &Value, kind: &str) -> bool {
    takes_currency(intent, kind) && (kind != "sepa_debit" || !is_manual(intent))
}

/// Sets the types of a new PaymentIntent.
pub(super) fn choose(intent: &mut Value, params: &Value) -> Result<(), ApiError> {
    check_one_choice(params)?;
    if let Some(types) = params.get("payment_method_types") {
        intent["payment_method_types"] = explicit(intent, types)?;
    } else if let Some(allowed) = params.get("allowed_payment_method_types") {
        intent["payment_method_types"] = usable(allowed, |kind| fits(intent, kind))?;
        intent["allowed_payment_method_types"] = allowed.clone();
    } else if params.get("automatic_payment_methods").is_none_or(|automatic| flag(automatic, "/enabled")) {
        let redirects = params.pointer("/automatic_payment_methods/allow_redirects").cloned();
        intent["automatic_payment_methods"] =
            json!({ "allow_redirects": redirects.unwrap_or_else(|| "always".into()), "enabled": true });
        let activated: Vec<&str> = KINDS.into_iter().filter(|kind| fits(intent, kind)).collect();
        intent["payment_method_types"] = json!(activated);
    }
    Ok(())
}

/// Replaces the types if the request names any, and checks them against what else the request has changed.
pub(super) fn replace(intent: &mut Value, params: &Value) -> Result<(), ApiError> {
    if ["payment_method_types", "allowed_payment_method_types"].iter().any(|choice| params.get(choice).is_some()) {
        intent["automatic_payment_methods"] = Value::Null;
        intent["allowed_payment_method_types"] = Value::Null;
        return choose(intent, params);
    }
    // `payment_method_types` is always set. It was given explicitly only if neither of the others is set.
    let choice = CHOICES.into_iter().find(|choice| !intent[*choice].is_null()).unwrap_or("payment_method_types");
    let chosen = json!({ choice: intent[choice] });
    choose(intent, &chosen)
}

fn explicit(intent: &Value, types: &Value) -> Result<Value, ApiError> {
    check_types(types)?;
    let named = || types.as_array().into_iter().flatten().filter_map(Value::as_str);
    let message = if named().any(|kind| !takes_currency(intent, kind)) {
        format!(
            "The currency provided ({}) is invalid for one or more payment method types on this PaymentIntent: sepa_debit \
             takes only eur.",
            text(intent, "/currency")
        )
    } else if named().any(|kind| !fits(intent, kind)) {
        "The payment method type sepa_debit cannot be used with a `capture_method` of `manual`.".to_owned()
    } else {
        return Ok(types.clone());
    };
    let api_error = ApiError::invalid(message).code("payment_intent_invalid_parameter");
    Err(api_error.at("payment_method_types").before_execution())
}

/// The types that a Checkout Session offers: all usable ones unless the request names some.
pub(super) fn for_session(currency: &str, params: &Value) -> Result<Value, ApiError> {
    check_one_choice(params)?;
    if let Some(types) = params.get("payment_method_types") {
        check_types(types)?;
        return Ok(types.clone());
    }
    let fits = |kind: &str| kind != "sepa_debit" || currency == "eur";
    match params.get("allowed_payment_method_types") {
        // Without a currency it is a setup session, and every type can be set up.
        Some(allowed) => usable(allowed, |kind| currency.is_empty() || fits(kind)),
        None => Ok(KINDS.into_iter().filter(|kind| fits(kind)).collect()),
    }
}

/// Sets the types of a SetupIntent if the request names any.
pub(super) fn choose_for_setup(intent: &mut Value, params: &Value) -> Result<(), ApiError> {
    check_one_choice(params)?;
    if let Some(types) = params.get("payment_method_types") {
        check_types(types)?;
        intent["payment_method_types"] = types.clone();
        intent["allowed_payment_method_types"] = Value::Null;
    } else if let Some(allowed) = params.get("allowed_payment_method_types") {
        intent["payment_method_types"] = usable(allowed, |_| true)?;
        intent["allowed_payment_method_types"] = allowed.clone();
    }
    Ok(())
}
