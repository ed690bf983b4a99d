//! Reports cards that expire this month, each once per month of expiry.

use crate::app::{App, event_payloads};
use crate::domain::Result;
use crate::domain::error::Error;
use crate::domain::events::EventType;
use crate::domain::integrations::Integration;
use crate::domain::jobs::Lease;
use crate::store;

/// How many cards of an integration one run reports (P11). The next run reports the others.
const BATCH: i64 = 100;

impl App {
    /// Reports an integration's cards that expire in the current month, in UTC. A card whose month of expiry changes,
    /// such as one renewed by its network, is reported again in its new month.
    pub(in crate::app) async fn report_expiring(&self, lease: &Lease, integration: &Integration) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let (org, month) = (work.org, work.now.year() * 12 + i32::from(u8::from(work.now.month())));
        let cards = store::payment_methods::take_expiring(&mut work.tx, org, integration.id, month, BATCH).await?;
        for id in cards {
            let card = store::payment_methods::get(&mut work.tx, org, id).await?;
            match store::customers::get(&mut work.tx, org, card.customer_id).await {
                Ok(customer) => {
                    work.record_event(event_payloads::method(
                        EventType::PaymentMethodExpiring,
                        &card,
                        &customer,
                        integration,
                    ));
                }
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        work.commit().await
    }
}
