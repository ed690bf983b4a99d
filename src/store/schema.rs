//! The tables, as diesel sees them. `migrations/` is the source; a test compares the two.

use diesel::table;

table! {
    organizations (id) {
        id -> Uuid,
        name -> Text,
        create_time -> Timestamptz,
    }
}

table! {
    api_tokens (organization_id, id) {
        organization_id -> Uuid,
        id -> Uuid,
        name -> Text,
        token_hash -> Bytea,
        create_time -> Timestamptz,
        revoke_time -> Nullable<Timestamptz>,
    }
}

table! {
    request_ids (organization_id, request_id) {
        organization_id -> Uuid,
        request_id -> Text,
        body_hash -> Bytea,
        resource_id -> Uuid,
        attempt_number -> Nullable<Integer>,
        create_time -> Timestamptz,
    }
}

table! {
    integrations (organization_id, id) {
        organization_id -> Uuid,
        id -> Uuid,
        code -> Text,
        name -> Text,
        state -> Text,
        pause_reason -> Nullable<Text>,
        livemode -> Bool,
        provider_account_id -> Nullable<Text>,
        key_hint -> Text,
        sealed_secret_key -> Nullable<Bytea>,
        provider_endpoint_id -> Nullable<Text>,
        sealed_webhook_secret -> Nullable<Bytea>,
        provider_old_endpoint_id -> Nullable<Text>,
        sealed_old_webhook_secret -> Nullable<Bytea>,
        endpoint_fault -> Nullable<Text>,
        forbidden_actions -> Array<Text>,
        polls_events -> Bool,
        poll_time -> Nullable<Timestamptz>,
        list_read_time -> Nullable<Timestamptz>,
        list_fast_until -> Nullable<Timestamptz>,
        list_walk_after -> Nullable<Text>,
        list_walk_since -> Nullable<Timestamptz>,
        list_walk_newest -> Nullable<Timestamptz>,
        sweep_time -> Nullable<Timestamptz>,
        success_redirect_url -> Nullable<Text>,
        supports_3ds -> Bool,
        relay_provider_events -> Bool,
        force_disconnect -> Bool,
        version -> BigInt,
        create_time -> Timestamptz,
        update_time -> Timestamptz,
    }
}

table! {
    stripe_contacts (organization_id, integration_id) {
        organization_id -> Uuid,
        integration_id -> Uuid,
        contact_time -> Timestamptz,
        number -> BigInt,
        catch_up_reason -> Nullable<Text>,
        catch_up_start -> Nullable<Timestamptz>,
        stage -> Nullable<Text>,
        after -> Nullable<Text>,
        objects_read -> BigInt,
        seen_number -> Nullable<BigInt>,
        seen_writer -> Nullable<Uuid>,
        seen_time -> Nullable<Timestamptz>,
        fault -> Nullable<Text>,
    }
}

table! {
    stripe_requests (organization_id, purpose, name, generation) {
        organization_id -> Uuid,
        purpose -> Text,
        name -> Text,
        generation -> Integer,
        idempotency_key -> Text,
        body -> Text,
        dead_key_time -> Nullable<Timestamptz>,
        taken_key_time -> Nullable<Timestamptz>,
        create_time -> Timestamptz,
        finish_time -> Nullable<Timestamptz>,
    }
}

table! {
    customers (organization_id, id) {
        organization_id -> Uuid,
        id -> Uuid,
        external_id -> Text,
        name -> Text,
        email -> Text,
        phone -> Text,
        address -> Nullable<Jsonb>,
        integration_id -> Nullable<Uuid>,
        link_state -> Text,
        link_error -> Nullable<Text>,
        provider_customer_id -> Nullable<Text>,
        provider_payment_methods -> Array<Text>,
        sync_with_provider -> Bool,
        default_payment_method_id -> Nullable<Uuid>,
        provider_default_id -> Nullable<Text>,
        provider_default_time -> Nullable<Timestamptz>,
        unpushed_fields -> Array<Text>,
        version -> BigInt,
        create_time -> Timestamptz,
        update_time -> Timestamptz,
        delete_time -> Nullable<Timestamptz>,
    }
}

table! {
    payment_methods (organization_id, id) {
        organization_id -> Uuid,
        id -> Uuid,
        customer_id -> Uuid,
        integration_id -> Uuid,
        provider_payment_method_id -> Text,
        kind -> Text,
        details -> Jsonb,
        mandate_ids -> Array<Text>,
        ended_mandate_ids -> Array<Text>,
        attach_time -> Nullable<Timestamptz>,
        choose_time -> Nullable<Timestamptz>,
        unset_time -> Nullable<Timestamptz>,
        is_unset_read -> Bool,
        detach_time -> Nullable<Timestamptz>,
        is_detach_read -> Bool,
        expiry_month -> Nullable<Integer>,
        reported_expiry -> Nullable<Integer>,
        create_time -> Timestamptz,
    }
}

table! {
    checkout_sessions (organization_id, id) {
        organization_id -> Uuid,
        id -> Uuid,
        customer_id -> Uuid,
        integration_id -> Uuid,
        state -> Text,
        success_url -> Text,
        provider_session_id -> Nullable<Text>,
        url -> Nullable<Text>,
        expire_time -> Nullable<Timestamptz>,
        reports_url -> Bool,
        create_time -> Timestamptz,
    }
}

table! {
    payments (organization_id, id) {
        organization_id -> Uuid,
        id -> Uuid,
        integration_id -> Uuid,
        customer_id -> Uuid,
        external_customer_id -> Text,
        invoice_id -> Text,
        invoice_number -> Text,
        amount -> BigInt,
        currency -> Bpchar,
        state -> Text,
        pending_reason -> Nullable<Text>,
        failure -> Nullable<Jsonb>,
        awaits_method -> Bool,
        provider_payment_intent_id -> Nullable<Text>,
        intent_number -> Integer,
        attempt_number -> Integer,
        requested_method_id -> Nullable<Uuid>,
        on_session -> Bool,
        next_action_url -> Nullable<Text>,
        action_time -> Nullable<Timestamptz>,
        provider_charge_id -> Nullable<Text>,
        amount_received -> BigInt,
        part_received -> BigInt,
        amount_refunded -> BigInt,
        cancel_request_time -> Nullable<Timestamptz>,
        pending_operation -> Nullable<Jsonb>,
        refused_amount -> Nullable<BigInt>,
        manual -> Nullable<Jsonb>,
        unknown_since -> Nullable<Timestamptz>,
        version -> BigInt,
        create_time -> Timestamptz,
        update_time -> Timestamptz,
    }
}

table! {
    payment_attempts (organization_id, payment_id, number) {
        organization_id -> Uuid,
        payment_id -> Uuid,
        number -> Integer,
        kind -> Text,
        amount -> BigInt,
        currency -> Bpchar,
        payment_method_id -> Nullable<Uuid>,
        provider_payment_intent_id -> Nullable<Text>,
        provider_session_id -> Nullable<Text>,
        url -> Nullable<Text>,
        expire_time -> Nullable<Timestamptz>,
        idempotency_key -> Text,
        body -> Text,
        prior_charge -> Nullable<Text>,
        prior_error -> Nullable<Jsonb>,
        state -> Text,
        failure -> Nullable<Jsonb>,
        provider_charge_id -> Nullable<Text>,
        dead_key_time -> Nullable<Timestamptz>,
        taken_key_time -> Nullable<Timestamptz>,
        create_time -> Timestamptz,
        finish_time -> Nullable<Timestamptz>,
    }
}

table! {
    charges (organization_id, provider_charge_id) {
        organization_id -> Uuid,
        provider_charge_id -> Text,
        payment_id -> Uuid,
        integration_id -> Uuid,
        amount -> BigInt,
        currency -> Bpchar,
        settles -> Bool,
        create_time -> Timestamptz,
    }
}

table! {
    refunds (organization_id, id) {
        organization_id -> Uuid,
        id -> Uuid,
        payment_id -> Uuid,
        integration_id -> Uuid,
        provider_refund_id -> Nullable<Text>,
        provider_charge_id -> Nullable<Text>,
        amount -> Nullable<BigInt>,
        currency -> Bpchar,
        status -> Text,
        failure_reason -> Nullable<Text>,
        unknown_since -> Nullable<Timestamptz>,
        request_id -> Nullable<Text>,
        create_time -> Timestamptz,
        update_time -> Timestamptz,
    }
}

table! {
    disputes (organization_id, provider_dispute_id) {
        organization_id -> Uuid,
        provider_dispute_id -> Text,
        payment_id -> Uuid,
        provider_charge_id -> Nullable<Text>,
        amount -> BigInt,
        currency -> Bpchar,
        status -> Text,
        reason -> Nullable<Text>,
        update_time -> Timestamptz,
    }
}

table! {
    overpayments (organization_id, provider_payment_intent_id) {
        organization_id -> Uuid,
        provider_payment_intent_id -> Text,
        payment_id -> Uuid,
        amount_received -> BigInt,
        create_time -> Timestamptz,
    }
}

table! {
    event_heads (organization_id) {
        organization_id -> Uuid,
        log_id -> Uuid,
        last_position -> BigInt,
        first_position -> BigInt,
    }
}

table! {
    events (organization_id, position) {
        organization_id -> Uuid,
        position -> BigInt,
        id -> Uuid,
        webhook_type -> Text,
        payload -> Jsonb,
        create_time -> Timestamptz,
    }
}

table! {
    deliveries (organization_id, integration_id, provider_event_id, created) {
        organization_id -> Uuid,
        integration_id -> Uuid,
        provider_event_id -> Text,
        created -> Timestamptz,
        event_type -> Text,
        body -> Text,
        polled -> Bool,
        state -> Text,
        reason -> Nullable<Text>,
        receive_time -> Timestamptz,
    }
}
