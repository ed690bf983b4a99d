//! Page tokens: the position at which a list continues. They are opaque and authenticated with an HMAC: a token is
//! valid only for the list, organization and filter that it was issued for, so a caller cannot forge a position (P10). A
//! token contains no secret and does not expire.
//!
//! Lists of resources are sorted from newest to oldest, by id (UUID v7), so the position is the id of the last item of a
//! page. The event log has positions of its own.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message;
use sha2::Sha256;
use uuid::Uuid;

use super::limits::PAGE_BYTES_MAX;
use crate::domain::{Error, OrganizationId, Page, Result};

const TAG_LENGTH: usize = 16;

/// The HMAC key of page tokens. Must be the same on all replicas.
#[derive(Clone)]
pub struct PageTokenKey(pub [u8; 32]);

/// One list of one organization with one filter. Page tokens are bound to it.
pub(super) struct List<'a> {
    key: &'a PageTokenKey,
    context: Vec<u8>,
}

impl<'a> List<'a> {
    /// `name` is unique per list. `filter` is the request without `page_size` and `page_token`.
    pub(super) fn new(key: &'a PageTokenKey, name: &str, organization: OrganizationId, filter: &impl Message) -> Self {
        let mut context = organization.0.as_bytes().to_vec();
        context.extend_from_slice(name.as_bytes());
        context.push(0);
        filter.encode(&mut context).unwrap_or_else(|_| unreachable!("a Vec grows as needed"));
        Self { key, context }
    }

    /// The page to read: one item more than requested, to find out whether there is a next page.
    pub(super) fn page(&self, size: usize, token: &str) -> Result<Page> {
        Ok(Page {
            size: i64::try_from(size + 1).map_err(Error::internal)?,
            after: self.start(token)?.map(Uuid::from_bytes),
        })
    }

    /// Truncates the items read to `size`, and to the bytes that a client accepts (P11). Returns the page and the token
    /// of the next one. Each item comes with its id.
    pub(super) fn paginate<T: Message>(&self, size: usize, items: Vec<(Uuid, T)>) -> (Vec<T>, String) {
        let found = items.len();
        let (mut page, mut bytes, mut last) = (Vec::with_capacity(found.min(size)), 0, None);
        for (id, item) in items.into_iter().take(size) {
            bytes += item.encoded_len();
            if bytes > PAGE_BYTES_MAX && last.is_some() {
                break;
            }
            page.push(item);
            last = Some(id);
        }
        let next = last.filter(|_| page.len() < found).map(|id| self.token_after(*id.as_bytes())).unwrap_or_default();
        (page, next)
    }

    /// The token of the page that starts after this position.
    pub(super) fn token_after<const LENGTH: usize>(&self, position: [u8; LENGTH]) -> String {
        let tag = self.mac(&position).finalize().into_bytes();
        BASE64_URL_SAFE_NO_PAD.encode([&position[..], &tag[..TAG_LENGTH]].concat())
    }

    /// The position after which the page starts; `None` for the first page.
    pub(super) fn start<const LENGTH: usize>(&self, token: &str) -> Result<Option<[u8; LENGTH]>> {
        if token.is_empty() {
            return Ok(None);
        }
        let invalid = || {
            let text = "is not a next_page_token of this list and filter; leave it empty to start with the first page";
            Error::invalid("page_token", text)
        };
        let token = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
        let (position, tag) = token.split_first_chunk::<LENGTH>().ok_or_else(invalid)?;
        if tag.len() != TAG_LENGTH {
            return Err(invalid());
        }
        self.mac(position).verify_truncated_left(tag).map_err(|_| invalid())?;
        Ok(Some(*position))
    }

    fn mac(&self, position: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key.0)
            .unwrap_or_else(|_| unreachable!("an HMAC takes a key of any length"));
        mac.update(&position.len().to_be_bytes());
        mac.update(position);
        mac.update(&self.context);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::{ListPaymentsRequest, list_payments_request};

    const KEY: PageTokenKey = PageTokenKey([7; 32]);

    fn list(name: &str, organization: u128, customer_id: &str) -> List<'static> {
        let customer = Some(list_payments_request::Customer::CustomerId(customer_id.into()));
        let filter = ListPaymentsRequest { customer, ..Default::default() };
        List::new(&KEY, name, Uuid::from_u128(organization).into(), &filter)
    }

    fn start(list: &List<'_>, token: &str) -> Result<Option<Uuid>> {
        Ok(list.page(1, token)?.after)
    }

    #[test]
    fn a_token_round_trips() {
        let token = list("payments", 1, "c").token_after([42; 16]);
        assert_eq!(start(&list("payments", 1, "c"), &token).unwrap(), Some(Uuid::from_bytes([42; 16])));
        assert_eq!(start(&list("payments", 1, "c"), "").unwrap(), None);
    }

    #[test]
    fn a_page_has_a_next_token_only_if_there_are_more_items() {
        let list = list("payments", 1, "c");
        let items = |count: u128| (1..=count).map(|n| (Uuid::from_u128(n), n.to_string())).collect::<Vec<_>>();
        let (page, next) = list.paginate(2, items(3));
        assert_eq!(page, ["1", "2"]);
        assert_eq!(start(&list, &next).unwrap(), Some(Uuid::from_u128(2)));
        assert_eq!(list.paginate(2, items(2)), (vec!["1".to_owned(), "2".to_owned()], String::new()));
        assert_eq!(list.paginate(2, items(0)), (vec![], String::new()));
    }

    #[test]
    fn p11_a_page_is_truncated_to_what_a_client_accepts() {
        let list = list("payments", 1, "c");
        let items = (1..=3).map(|n| (Uuid::from_u128(n), "x".repeat(PAGE_BYTES_MAX / 2))).collect();
        let (page, next) = list.paginate(3, items);
        assert_eq!(page.len(), 1);
        assert_eq!(start(&list, &next).unwrap(), Some(Uuid::from_u128(1)));
    }

    #[test]
    fn p10_a_token_is_valid_only_for_its_list_organization_and_filter() {
        let token = list("payments", 1, "c").token_after([42; 16]);
        let mut forged = BASE64_URL_SAFE_NO_PAD.decode(&token).unwrap();
        forged[15] ^= 1;
        let forged = BASE64_URL_SAFE_NO_PAD.encode(forged);
        assert!(start(&list("payments", 2, "c"), &token).is_err(), "another organization");
        assert!(start(&list("payments", 1, "d"), &token).is_err(), "another filter");
        assert!(start(&list("customers", 1, "c"), &token).is_err(), "another list");
        assert!(start(&list("payments", 1, "c"), &forged).is_err(), "another position");
        let longer = list("payments", 1, "c").token_after([42; 24]);
        for bad in ["x", "!!", &token[1..], longer.as_str()] {
            assert!(start(&list("payments", 1, "c"), bad).is_err(), "{bad}");
        }
    }
}
