//! Repetition of the requests that a restoration of the database has lost. What was acknowledged for them no longer
//! counts, until it is acknowledged again.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::requests::Request;
use super::restorations::LostRequest;
use super::workload::Workload;

impl Workload {
    /// Repeats lost requests: those of each organization in their order, except links, which no other request needs and
    /// which have to wait until the integration has caught up.
    pub async fn repeat(self: &Arc<Self>, lost: Vec<LostRequest>) {
        for request in &lost {
            self.forget(request);
        }
        let (links, others): (Vec<_>, Vec<_>) =
            lost.into_iter().map(|lost| lost.request).partition(|request| matches!(request, Request::CreateLink(..)));
        for link in links {
            let workload = Arc::clone(self);
            self.actors.spawn(async move { workload.send_again(link).await });
        }
        let mut organizations = JoinSet::new();
        for number in 0..self.organizations.len() {
            let own: Vec<_> = others.iter().filter(|request| request.organization() == number).cloned().collect();
            let workload = Arc::clone(self);
            organizations.spawn(async move {
                for request in own {
                    workload.send_again(request).await;
                }
            });
        }
        while organizations.join_next().await.is_some() {}
    }

    /// Forgets what was acknowledged.
    fn forget(&self, lost: &LostRequest) {
        match &lost.request {
            Request::CreatePayment(invoice, _) => self.history.invoice(invoice.organization, &invoice.id, |record| {
                record.payments.remove(&lost.id);
            }),
            // Which amount was the last is not known any more, which a repeated entry says.
            Request::ChangeAmount(target, amount, _) => {
                self.history.invoice(target.organization, &target.invoice, |record| {
                    record.acknowledged_changes.push(*amount);
                });
            }
            Request::RecordManual(target, _) => self.history.invoice(target.organization, &target.invoice, |record| {
                record.is_manual_acknowledged = false;
            }),
            Request::Refund(_) => self.history.external(|external| _ = external.refunds.remove(&lost.id)),
            Request::CreateCustomer(..) | Request::CancelPayment(_) | Request::Retry(..) | Request::CreateLink(..) => {}
        }
    }

    async fn send_again(self: &Arc<Self>, request: Request) {
        match request {
            Request::CreateCustomer(organization, request) => self.send_customer(organization, *request).await,
            Request::CreatePayment(invoice, request_id) => _ = self.create_payment(&invoice, &request_id).await,
            Request::CancelPayment(invoice) => self.cancel_payment(&invoice).await,
            Request::ChangeAmount(target, amount, currency) => {
                self.change_amount(&target, amount, currency).await;
            }
            Request::RecordManual(target, name) => self.record_manual(&target, name).await,
            Request::Refund(plan) => self.refund(&plan).await,
            Request::Retry(organization, request) => {
                let mut rng = self.rng(&request.request_id);
                self.retry(organization, request, &mut rng).await;
            }
            Request::CreateLink(target, name) => {
                let mut rng = self.rng(&format!("again {name} {}", target.invoice));
                self.request_link(&target, &name, &mut rng).await;
            }
        }
    }
}
