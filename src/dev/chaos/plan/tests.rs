use super::*;

#[test]
fn a_seed_gives_one_plan_and_another_seed_another() {
    let told = |seed| format!("{:?}", Plan::new(seed, 300));
    assert_eq!(told(5), told(5));
    assert_ne!(told(5), told(6));
}

#[test]
fn a_plan_of_some_size_holds_everything() {
    let plan = Plan::new(1, 2_000);
    let scripts = [
        Script::Plain,
        Script::Repeated,
        Script::Nothing,
        Script::TooSmall,
        Script::Canceled,
        Script::Reopened,
        Script::PaidByHand,
        Script::PaidBeside,
    ];
    for script in scripts {
        assert!(plan.invoices.iter().any(|invoice| invoice.script == script), "{script:?}");
    }
    for wanted in [Move::Again, Move::Retry, Move::Cancel, Move::Manual, Move::ByHand, Move::Link(Payer::Leaves)] {
        let makes =
            |script| matches!(script, Script::Moves(first, second) if first == wanted || second == Some(wanted));
        assert!(plan.invoices.iter().any(|invoice| makes(invoice.script)), "{wanted:?}");
    }
    let customers = || plan.organizations.iter().flatten();
    let wallets = [
        Wallet::Good,
        Wallet::Late,
        Wallet::Empty,
        Wallet::Refused,
        Wallet::WantsProof,
        Wallet::Fickle,
        Wallet::ImportedDebit,
        Wallet::DefaultSource,
    ];
    for wallet in wallets {
        assert!(customers().any(|customer| customer.wallet == wallet), "{wallet:?}");
    }
    for iban in IBANS {
        assert!(customers().any(|customer| customer.wallet == Wallet::Bank(iban)), "{iban}");
    }
    for iban in PAYING_IBANS {
        assert!(customers().any(|customer| customer.wallet == Wallet::DebitsByLink(iban)), "{iban}");
    }
    for afterwards in [Afterwards::Chosen, Afterwards::Added, Afterwards::Nothing] {
        assert!(customers().any(|customer| customer.wallet == Wallet::Unset(afterwards)), "{afterwards:?}");
    }
    let is_repriced = |wanted: fn(Payer) -> bool| {
        let mut scripts = plan.invoices.iter().map(|invoice| invoice.script);
        scripts.any(|script| matches!(script, Script::Repriced(payer, _) if wanted(payer)))
    };
    assert!(is_repriced(|payer| payer == Payer::Proves));
    assert!(is_repriced(|payer| matches!(payer, Payer::Debits(_))));
    assert!(customers().any(|customer| customer.is_linked));
}
