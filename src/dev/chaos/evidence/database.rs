//! Evidence from the database, as its superuser reads it.

use anyhow::{Context as _, Result};
use tokio_postgres::Client;

use super::{AttemptRow, CustomerRow, DeliveryRow, EventRow, Evidence, JobRow, OverpaymentRow, PaymentRow, RefundRow};

impl Evidence {
    /// Reads the database. `now` is the run's time, in Unix seconds.
    pub async fn read_database(&mut self, client: &Client, now: f64) -> Result<()> {
        let payments = "SELECT organization_id::text, id::text, invoice_id, state, coalesce(pending_reason, ''), \
             coalesce(failure ->> 'code', ''), amount, amount_received, amount_refunded, \
             coalesce(provider_payment_intent_id, ''), manual IS NOT NULL FROM payments ORDER BY id";
        for row in client.query(payments, &[]).await.context("payments")? {
            self.payments.push(PaymentRow {
                organization: row.get(0),
                id: row.get(1),
                invoice: row.get(2),
                state: row.get(3),
                pending_reason: row.get(4),
                failure: row.get(5),
                amount: row.get(6),
                received: row.get(7),
                refunded: row.get(8),
                intent: row.get(9),
                is_manual: row.get(10),
            });
        }
        self.read_customers(client).await?;
        let attempts =
            "SELECT payment_id::text, number, state = 'open', coalesce(provider_session_id, '') FROM payment_attempts";
        for row in client.query(attempts, &[]).await.context("attempts")? {
            let (payment, number, is_open) = (row.get(0), row.get(1), row.get(2));
            self.attempts.push(AttemptRow { payment, number, is_open, session: row.get(3) });
        }
        let refunds = "SELECT id::text, payment_id::text, coalesce(provider_refund_id, ''), coalesce(amount, 0), status, \
             coalesce(failure_reason, '') FROM refunds";
        for row in client.query(refunds, &[]).await.context("refunds")? {
            self.refunds.push(RefundRow {
                id: row.get(0),
                payment: row.get(1),
                refund: row.get(2),
                amount: row.get(3),
                status: row.get(4),
                failure: row.get(5),
            });
        }
        let disputes = "SELECT provider_dispute_id, status FROM disputes";
        for row in client.query(disputes, &[]).await.context("disputes")? {
            self.disputes.insert(row.get(0), row.get(1));
        }
        let overpayments = "SELECT provider_payment_intent_id, payment_id::text FROM overpayments";
        for row in client.query(overpayments, &[]).await.context("overpayments")? {
            self.overpayments.push(OverpaymentRow { intent: row.get(0), payment: row.get(1) });
        }
        let deliveries = "SELECT organization_id::text, provider_event_id, state, coalesce(reason, ''), \
             (extract(epoch FROM receive_time) * 1000000)::bigint FROM deliveries";
        for row in client.query(deliveries, &[]).await.context("deliveries")? {
            let delivery = DeliveryRow { state: row.get(2), reason: row.get(3), received: row.get(4) };
            self.deliveries.insert((row.get(0), row.get(1)), delivery);
        }
        let jobs = "SELECT kind, object_id::text || ' ' || object_key, failures, coalesce(last_error, ''), \
             $1::float8 - extract(epoch FROM run_at)::float8, coalesce(lease_until > clock_timestamp(), false), \
             park_time IS NOT NULL FROM jobs";
        for row in client.query(jobs, &[&now]).await.context("jobs")? {
            self.jobs.push(JobRow {
                kind: row.get(0),
                object: row.get(1),
                failures: row.get(2),
                last_error: row.get(3),
                overdue: row.get(4),
                is_leased: row.get(5),
                is_parked: row.get(6),
            });
        }
        self.read_events(client).await
    }

    async fn read_customers(&mut self, client: &Client) -> Result<()> {
        let customers = "SELECT customer.organization_id::text, external_id, coalesce(provider_customer_id, ''), \
             coalesce(provider_payment_method_id, '') FROM customers AS customer LEFT JOIN payment_methods AS method \
             ON method.organization_id = customer.organization_id AND method.id = default_payment_method_id";
        for row in client.query(customers, &[]).await.context("customers")? {
            let (organization, external_id, customer) = (row.get(0), row.get(1), row.get(2));
            self.customers.push(CustomerRow { organization, external_id, customer, default: row.get(3) });
        }
        Ok(())
    }

    async fn read_events(&mut self, client: &Client) -> Result<()> {
        let events = "SELECT organization_id::text, position, id::text, webhook_type, \
             coalesce(payload #>> '{payment,lago_id}', \
                 payload #>> '{payment_provider_invoice_payment_error,lago_payment_id}', ''), \
             coalesce(payload #>> '{payment,provider_payment_id}', ''), \
             coalesce(payload #>> '{refund,lago_refund_id}', ''), coalesce(payload #>> '{refund,status}', ''), \
             coalesce((payload #>> '{payment,amount_cents}')::bigint, 0), \
             coalesce((payload #>> '{payment,requested_amount_cents}')::bigint, 0), \
             coalesce(payload #>> '{payment_method,external_customer_id}', \
                 payload #>> '{payment_provider_invoice_payment_error,external_customer_id}', \
                 payload #>> '{customer,external_id}', ''), \
             coalesce(payload #>> '{payment_method,provider_method_id}', ''), \
             coalesce(payload #>> '{payment_provider_invoice_payment_error,error_details,code}', '') \
             FROM events ORDER BY organization_id, position";
        for row in client.query(events, &[]).await.context("events")? {
            self.events.push(EventRow {
                organization: row.get(0),
                position: row.get(1),
                id: row.get(2),
                webhook_type: row.get(3),
                payment: row.get(4),
                intent: row.get(5),
                refund: row.get(6),
                status: row.get(7),
                amount: row.get(8),
                requested: row.get(9),
                customer: row.get(10),
                method: row.get(11),
                code: row.get(12),
            });
        }
        let heads = "SELECT organization_id::text, last_position FROM event_heads";
        for row in client.query(heads, &[]).await.context("event heads")? {
            self.heads.insert(row.get(0), row.get(1));
        }
        Ok(())
    }
}
