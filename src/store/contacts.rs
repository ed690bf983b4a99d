//! Rows of integrations' contacts with Stripe, this database's incarnation, and new ids of event logs.

use diesel::prelude::*;
use diesel::sql_types::Uuid as SqlUuid;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::unreadable;
use super::rows::variant;
use super::schema::event_heads::dsl as heads;
use super::schema::stripe_contacts::dsl;
use crate::domain::catch_up::{CatchUp, Contact, Counter};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};

#[derive(Queryable, Selectable, AsChangeset)]
#[diesel(table_name = super::schema::stripe_contacts, treat_none_as_null = true)]
struct Row {
    contact_time: OffsetDateTime,
    number: i64,
    catch_up_reason: Option<String>,
    catch_up_start: Option<OffsetDateTime>,
    stage: Option<String>,
    after: Option<String>,
    objects_read: i64,
    seen_number: Option<i64>,
    seen_writer: Option<Uuid>,
    seen_time: Option<OffsetDateTime>,
    fault: Option<String>,
}

impl From<&Contact> for Row {
    fn from(contact: &Contact) -> Self {
        let catch_up = contact.catch_up.as_ref();
        let seen = catch_up.and_then(|it| it.seen);
        Self {
            contact_time: contact.time,
            number: contact.number,
            catch_up_reason: catch_up.map(|it| it.reason.as_str().to_owned()),
            catch_up_start: catch_up.and_then(|it| it.start_time),
            stage: catch_up.map(|it| it.stage.as_str().to_owned()),
            after: catch_up.and_then(|it| it.after.clone()),
            objects_read: catch_up.map_or(0, |it| it.objects_read),
            seen_number: seen.map(|it| it.number),
            seen_writer: seen.map(|it| it.writer),
            seen_time: seen.map(|it| it.time),
            fault: catch_up.and_then(|it| it.fault.clone()),
        }
    }
}

impl Row {
    fn parse(self) -> Result<Contact> {
        Ok(Contact { time: self.contact_time, number: self.number, catch_up: self.catch_up()? })
    }

    fn catch_up(self) -> Result<Option<CatchUp>> {
        let Some(reason) = self.catch_up_reason else { return Ok(None) };
        let stage = self.stage.ok_or_else(|| unreadable("stripe_contacts", "stage", "NULL"))?;
        let seen = match (self.seen_number, self.seen_writer, self.seen_time) {
            (Some(number), Some(writer), Some(time)) => Some(Counter { number, writer, time }),
            _ => None,
        };
        Ok(Some(CatchUp {
            reason: variant("stripe_contacts", "catch_up_reason", &reason)?,
            start_time: self.catch_up_start,
            stage: variant("stripe_contacts", "stage", &stage)?,
            after: self.after,
            objects_read: self.objects_read,
            seen,
            fault: self.fault,
        }))
    }
}

/// Inserts the contact of a new integration, which Stripe confirmed at `time`.
pub async fn insert(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    time: OffsetDateTime,
) -> Result<()> {
    diesel::insert_into(dsl::stripe_contacts)
        .values((
            dsl::organization_id.eq(org.0),
            dsl::integration_id.eq(id.0),
            dsl::contact_time.eq(time),
            dsl::number.eq(0),
            dsl::objects_read.eq(0),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Reads an integration's contact.
pub async fn get(conn: &mut AsyncPgConnection, org: OrganizationId, id: IntegrationId) -> Result<Contact> {
    let row: Option<Row> =
        dsl::stripe_contacts.find((org.0, id.0)).select(Row::as_select()).first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("integration", id))?.parse()
}

/// Reads and locks an integration's contact until the transaction ends. Locked after the integration, before jobs.
pub async fn lock(conn: &mut AsyncPgConnection, org: OrganizationId, id: IntegrationId) -> Result<Contact> {
    let query = dsl::stripe_contacts.find((org.0, id.0)).select(Row::as_select()).for_update();
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("integration", id))?.parse()
}

/// Updates a locked contact.
pub async fn save(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    contact: &Contact,
) -> Result<()> {
    let target = dsl::stripe_contacts.find((org.0, id.0));
    diesel::update(target).set(Row::from(contact)).execute(conn).await?;
    Ok(())
}

/// Reads this database's incarnation, which no copy of it shares.
pub async fn incarnation(conn: &mut AsyncPgConnection) -> Result<Uuid> {
    #[derive(QueryableByName)]
    struct Incarnation {
        #[diesel(sql_type = SqlUuid)]
        incarnation: Uuid,
    }
    let row: Incarnation = diesel::sql_query("SELECT incarnation FROM installation").get_result(conn).await?;
    Ok(row.incarnation)
}

/// Gives an organization's event log another id: positions that were read before may be other events now. Locks the
/// log's counter until the transaction ends (P5).
pub async fn renew_log(conn: &mut AsyncPgConnection, org: OrganizationId) -> Result<()> {
    let new_id = diesel::dsl::sql::<SqlUuid>("gen_random_uuid()");
    diesel::update(heads::event_heads.find(org.0)).set(heads::log_id.eq(new_id)).execute(conn).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::catch_up::{CatchUpReason, Stage};

    #[test]
    fn a_contact_is_read_back_as_it_was_saved() {
        let time = OffsetDateTime::UNIX_EPOCH;
        let seen = Counter { number: 7, writer: Uuid::from_u128(1), time };
        let begun = CatchUp::new(CatchUpReason::DatabaseChanged);
        let waiting = CatchUp {
            start_time: Some(time),
            stage: Stage::Takeover,
            after: Some("evt_1".to_owned()),
            objects_read: 10_000,
            seen: Some(seen),
            fault: Some("another copy".to_owned()),
            ..CatchUp::new(CatchUpReason::CounterAhead)
        };
        for catch_up in [None, Some(begun), Some(waiting)] {
            let contact = Contact { time, number: 5, catch_up };
            assert_eq!(Row::from(&contact).parse().unwrap(), contact);
        }
    }

    /// check_identity writes these names.
    #[test]
    fn names_in_migrations_are_those_of_the_types() {
        let sql = include_str!("../../migrations/2026-12-01-000006_startup_checks/up.sql");
        for (column, name) in [
            ("catch_up_reason", CatchUpReason::DatabaseChanged.as_str()),
            ("stage", CatchUp::new(CatchUpReason::DatabaseChanged).stage.as_str()),
        ] {
            assert!(sql.contains(&format!("{column} = '{name}'")), "{column} {name}");
        }
    }
}
