//! Pages of Stripe's lists.

use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;

use super::call::Call;
use super::client::Client;
use super::error::{Error, UnknownCause};
use super::form::Form;
use super::metadata;
use super::object::Page;
use super::rate_limit::ApiKey;
use super::redact::scrub;

/// One page of a list, newest first, at most 100 objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPage<T> {
    /// The objects.
    pub items: Vec<T>,
    /// The id after which the next page begins; `None` at the end of the list.
    pub next: Option<String>,
}

/// The filter for objects created at `since` or later.
pub(super) fn created_since(since: OffsetDateTime) -> Form {
    Form::new().push("created[gte]", since.unix_timestamp())
}

impl Client {
    /// Reads the page of a list that begins after the object `after`, or the first one.
    pub(super) async fn page<W: DeserializeOwned, T: From<W>>(
        &self,
        key: &ApiKey,
        route: &'static str,
        filter: Form,
        after: Option<&str>,
    ) -> Result<ListPage<T>, Error> {
        let page = self.raw_page(key, route, filter, after).await?;
        let items = page.items.into_iter().map(parse::<W, T>).collect::<Result<Vec<T>, Error>>()?;
        Ok(ListPage { items, next: page.next })
    }

    /// Reads a whole list. [`Error::Unknown`] with the message `too_long` if it has more than `pages_max` pages (P11).
    pub(super) async fn whole_list<W: DeserializeOwned, T: From<W>>(
        &self,
        key: &ApiKey,
        route: &'static str,
        filter: &Form,
        pages_max: usize,
        too_long: &str,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        let mut after = None::<String>;
        for _ in 0..pages_max {
            let page = self.page::<W, T>(key, route, filter.clone(), after.as_deref()).await?;
            all.extend(page.items);
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
        Err(Error::unknown(UnknownCause::TooLong, too_long))
    }

    /// Reads a page of a list of the whole account, which also has objects that are not ours. It differs from
    /// [`Self::page`]:
    ///
    /// - If the object `after` is no longer in the list, this is the first page again: a session has expired, or a
    ///   customer was deleted. Stripe refuses such an `after` (<https://github.com/stripe/stripe-node/issues/2368>).
    /// - An unreadable object without our metadata is logged and skipped: it must not block the others.
    pub(super) async fn account_page<W: DeserializeOwned, T: From<W>>(
        &self,
        key: &ApiKey,
        route: &'static str,
        filter: Form,
        after: Option<&str>,
    ) -> Result<ListPage<T>, Error> {
        let page = match self.raw_page(key, route, filter.clone(), after).await {
            Err(error) if after.is_some() && error.is_missing() => self.raw_page(key, route, filter, None).await?,
            page => page?,
        };
        let mut items = Vec::with_capacity(page.items.len());
        for object in page.items {
            let id = id_of(&object);
            let is_ours =
                object.get("metadata").is_some_and(|entries| entries.get(metadata::ORGANIZATION_ID).is_some());
            match parse::<W, T>(object) {
                Ok(item) => items.push(item),
                Err(error) if is_ours => return Err(error),
                Err(error) => tracing::error!(object.id = id, route, %error, "skipping an unreadable object of a list"),
            }
        }
        Ok(ListPage { items, next: page.next })
    }

    async fn raw_page(
        &self,
        key: &ApiKey,
        route: &'static str,
        filter: Form,
        after: Option<&str>,
    ) -> Result<ListPage<Value>, Error> {
        let query = filter.push("limit", 100).push_some("starting_after", after).into_body();
        let page: Page<Value> = self.send(key, Call::get(route, None, &query)).await?;
        let next = page.data.last().filter(|_| page.has_more).and_then(id_of);
        if page.has_more && next.is_none() {
            let message = "the list continues after a page whose last object has no id";
            return Err(Error::unknown(UnknownCause::Unreadable, message));
        }
        Ok(ListPage { items: page.data, next })
    }
}

fn id_of(object: &Value) -> Option<String> {
    object.get("id")?.as_str().map(str::to_owned)
}

fn parse<W: DeserializeOwned, T: From<W>>(object: Value) -> Result<T, Error> {
    let read = serde_json::from_value::<W>(object).map(T::from);
    // The parser's message may quote a value.
    read.map_err(|error| Error::unknown(UnknownCause::Unreadable, &scrub(&format!("an object is unreadable: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{ScriptedServer, key, response};
    use super::*;

    const SINCE: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn intent(id: &str, status: &str, organization_id: &str) -> String {
        format!(
            r#"{{"id":"{id}","status":"{status}","amount":1,"currency":"eur",
            "metadata":{{"{}":"{organization_id}"}}}}"#,
            if organization_id.is_empty() { "other" } else { metadata::ORGANIZATION_ID },
        )
    }

    async fn server(data: &[String], has_more: bool) -> ScriptedServer {
        let page = format!(r#"{{"object":"list","has_more":{has_more},"data":[{}]}}"#, data.join(","));
        ScriptedServer::new(move |_| response(200, &page)).await
    }

    /// Stripe may add a status. An intent that has it is in the way only if it is ours.
    #[tokio::test]
    async fn an_unreadable_object_is_skipped_unless_it_is_ours() {
        let readable = intent("pi_1", "canceled", "");
        let foreign = server(&[intent("pi_2", "something_new", ""), readable.clone()], false).await;
        let page = foreign.client().payment_intents_since(&key(), SINCE, None).await.unwrap();
        assert_eq!(page.items.iter().map(|intent| intent.id.as_str()).collect::<Vec<_>>(), ["pi_1"]);
        let organization = "00000000-0000-0000-0000-000000000002";
        let ours = server(&[intent("pi_2", "something_new", organization), readable], false).await;
        let error = ours.client().payment_intents_since(&key(), SINCE, None).await.unwrap_err();
        assert!(matches!(error, Error::Unknown { reason: UnknownCause::Unreadable, .. }), "{error:?}");
    }

    #[tokio::test]
    async fn p2_a_whole_list_with_an_unreadable_object_proves_nothing() {
        let server = server(&[r#"{"id":"re_1","amount":"many"}"#.to_owned()], false).await;
        let error = server.client().refunds_of(&key(), "ch_1").await.unwrap_err();
        assert!(matches!(error, Error::Unknown { reason: UnknownCause::Unreadable, .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_list_that_cannot_be_continued_is_unreadable_and_not_at_its_end() {
        for data in [vec![], vec![r#"{"object":"payment_intent"}"#.to_owned()]] {
            let error =
                server(&data, true).await.client().payment_intents_since(&key(), SINCE, None).await.unwrap_err();
            assert!(matches!(error, Error::Unknown { reason: UnknownCause::Unreadable, .. }), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_page_is_read_anew_only_if_its_cursor_may_be_the_cause() {
        let error = r#"{"error":{"type":"invalid_request_error","code":"resource_missing","message":"No such"}}"#;
        for (after, requests) in [(Some("du_1"), 2), (None, 1)] {
            let server = ScriptedServer::new(move |_| response(400, error)).await;
            let read = server.client().disputes_since(&key(), SINCE, after).await;
            assert!(read.unwrap_err().is_missing());
            assert_eq!(server.requests().len(), requests, "{after:?}");
        }
    }

    #[tokio::test]
    async fn disputes_of_the_account_are_read() {
        let dispute = r#"{"id":"du_1","amount":100,"currency":"eur","status":"lost","charge":"ch_1","metadata":{}}"#;
        let server = server(&[dispute.to_owned()], true).await;
        let page = server.client().disputes_since(&key(), SINCE, None).await.unwrap();
        assert_eq!(server.requests()[0].target, "/v1/disputes?created[gte]=0&limit=100");
        assert_eq!((page.items[0].provider_charge_id.as_deref(), page.next.as_deref()), (Some("ch_1"), Some("du_1")));
    }
}
