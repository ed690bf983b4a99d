use super::*;

#[test]
fn a_plan_depends_on_its_seed_only() {
    let shown = |seed| format!("{:?}", Plan::new(seed, 300));
    assert_eq!(shown(5), shown(5));
    assert_ne!(shown(5), shown(6));
}

#[test]
fn a_large_plan_has_every_kind() {
    let plan = Plan::new(1, 2_000);
    let scripts = [
        Script::Plain,
        Script::Repeated,
        Script::ZeroAmount,
        Script::TooSmall,
        Script::Canceled,
        Script::Reopened,
        Script::PaidInDashboard,
        Script::PaidByOtherIntent,
    ];
    for script in scripts {
        assert!(plan.invoices.iter().any(|invoice| invoice.script == script), "{script:?}");
    }
    for wanted in [
        Operation::Resubmit,
        Operation::Retry,
        Operation::Cancel,
        Operation::RecordManual,
        Operation::PayInDashboard,
        Operation::SendLink(PayerAction::Abandon),
    ] {
        let has =
            |script| matches!(script, Script::Operations(first, second) if first == wanted || second == Some(wanted));
        assert!(plan.invoices.iter().any(|invoice| has(invoice.script)), "{wanted:?}");
    }
    let customers = || plan.organizations.iter().flatten();
    let profiles = [
        CustomerProfile::GoodCard,
        CustomerProfile::LateCard,
        CustomerProfile::NoMethod,
        CustomerProfile::DeclinedCard,
        CustomerProfile::NeedsAuthentication,
        CustomerProfile::ChangingDefault,
        CustomerProfile::ImportedBankAccount,
        CustomerProfile::DefaultSource,
    ];
    for profile in profiles {
        assert!(customers().any(|customer| customer.profile == profile), "{profile:?}");
    }
    for iban in IBANS {
        assert!(customers().any(|customer| customer.profile == CustomerProfile::BankAccount(iban)), "{iban}");
    }
    for iban in PAYING_IBANS {
        assert!(customers().any(|customer| customer.profile == CustomerProfile::BankAccountByLink(iban)), "{iban}");
    }
    for after_unset in [AfterUnset::ChosenAgain, AfterUnset::CardAdded, AfterUnset::Nothing] {
        assert!(
            customers().any(|customer| customer.profile == CustomerProfile::UnsetDefault(after_unset)),
            "{after_unset:?}"
        );
    }
    let has_amount_change = |wanted: fn(PayerAction) -> bool| {
        let mut scripts = plan.invoices.iter().map(|invoice| invoice.script);
        scripts.any(|script| matches!(script, Script::AmountChanged(payer, _) if wanted(payer)))
    };
    assert!(has_amount_change(|payer| payer == PayerAction::PayWith3ds));
    assert!(has_amount_change(|payer| matches!(payer, PayerAction::PayByDebit(_))));
    assert!(customers().any(|customer| customer.is_linked));
}
