//! Cards that expire this month: each is reported once for its month of expiry.

use crate::app::{App, tell};
use crate::domain::Result;
use crate::domain::error::Error;
use crate::domain::integrations::Integration;
use crate::domain::jobs::Lease;
use crate::store;

/// How many cards of an integration are reported at one look (P11); the others are found by the next.
const BATCH: i64 = 100;

impl App {
    /// Reports an integration's cards whose last month is the present one, in UTC. What changes about a card after that, as
    /// where the network renews it, leads to another report in its new month.
    pub(in crate::app) async fn report_expiring(&self, lease: &Lease, integration: &Integration) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let (org, month) = (work.org, work.now.year() * 12 + i32::from(u8::from(work.now.month())));
        let cards = store::payment_methods::take_expiring(&mut work.tx, org, integration.id, month, BATCH).await?;
        for id in cards {
            let card = store::payment_methods::get(&mut work.tx, org, id).await?;
            match store::customers::get(&mut work.tx, org, card.customer_id).await {
                Ok(customer) => work.tell(tell::method("payment_method.expiring", &card, &customer, integration)),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        work.commit().await
    }
}
