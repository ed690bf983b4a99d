//! Page tokens: where a list goes on. Opaque to callers, and authenticated: a token is good only for the list, the
//! organization and the filter that it was made for, so that nobody can make up a place to read from (P10). It holds no
//! secret and never expires.
//!
//! Lists run from the newest to the oldest, and ids (UUID v7) with them, so the place is the id of a page's last item.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message;
use sha2::Sha256;
use uuid::Uuid;

use super::PAGE_BYTES_MAX;
use crate::domain::{Error, OrganizationId, Page, Result};

const ID_LENGTH: usize = 16;
const TAG_LENGTH: usize = 16;

/// What the service's page tokens are authenticated with. All replicas have the same.
#[derive(Clone)]
pub struct PageTokenKey(pub [u8; 32]);

/// One list of one organization, with one filter: what a token is bound to.
pub(super) struct List<'a> {
    key: &'a PageTokenKey,
    bound_to: Vec<u8>,
}

impl<'a> List<'a> {
    /// `name` tells lists apart. `filter` is the request without `page_size` and `page_token`.
    pub(super) fn new(key: &'a PageTokenKey, name: &str, organization: OrganizationId, filter: &impl Message) -> Self {
        let mut bound_to = organization.0.as_bytes().to_vec();
        bound_to.extend_from_slice(name.as_bytes());
        bound_to.push(0);
        filter.encode(&mut bound_to).unwrap_or_else(|_| unreachable!("a Vec grows as needed"));
        Self { key, bound_to }
    }

    /// What to ask `app` for: one item more than the page holds, which tells whether there is a next page.
    pub(super) fn page(&self, size: usize, token: &str) -> Result<Page> {
        Ok(Page { size: i64::try_from(size + 1).map_err(Error::internal)?, after: self.start(token)? })
    }

    /// Cuts what `app` gave to a page of `size` items, and of no more bytes than a client takes (P11); and names the next.
    /// Every item comes with its id.
    pub(super) fn cut<T: Message>(&self, size: usize, items: Vec<(Uuid, T)>) -> (Vec<T>, String) {
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
        let next = last.filter(|_| page.len() < found).map(|id| self.token_after(id)).unwrap_or_default();
        (page, next)
    }

    /// The token of the page that begins after the item with this id.
    fn token_after(&self, id: Uuid) -> String {
        let mut token = id.as_bytes().to_vec();
        token.extend_from_slice(&self.mac(id).finalize().into_bytes()[..TAG_LENGTH]);
        BASE64_URL_SAFE_NO_PAD.encode(token)
    }

    /// The id of the item after which the page begins; `None` for the first page.
    fn start(&self, token: &str) -> Result<Option<Uuid>> {
        if token.is_empty() {
            return Ok(None);
        }
        let refused = || {
            let text = "is not the next_page_token of this list with this filter; leave it empty to begin anew";
            Error::invalid("page_token", text)
        };
        let token = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
        if token.len() != ID_LENGTH + TAG_LENGTH {
            return Err(refused());
        }
        let (id, tag) = token.split_at(ID_LENGTH);
        let id = Uuid::from_slice(id).map_err(|_| refused())?;
        self.mac(id).verify_truncated_left(tag).map_err(|_| refused())?;
        Ok(Some(id))
    }

    fn mac(&self, id: Uuid) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key.0)
            .unwrap_or_else(|_| unreachable!("an HMAC takes a key of any length"));
        mac.update(id.as_bytes());
        mac.update(&self.bound_to);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::ListPaymentsRequest;

    const KEY: PageTokenKey = PageTokenKey([7; 32]);

    fn list(name: &str, organization: u128, customer_id: &str) -> List<'static> {
        let filter = ListPaymentsRequest { customer_id: customer_id.into(), ..Default::default() };
        List::new(&KEY, name, Uuid::from_u128(organization).into(), &filter)
    }

    #[test]
    fn a_token_leads_back_to_its_place() {
        let id = Uuid::from_u128(42);
        let token = list("payments", 1, "c").token_after(id);
        assert_eq!(list("payments", 1, "c").start(&token).unwrap(), Some(id));
        assert_eq!(list("payments", 1, "c").start("").unwrap(), None);
    }

    #[test]
    fn a_page_names_the_next_one_only_if_there_is_more() {
        let list = list("payments", 1, "c");
        let items = |count: u128| (1..=count).map(|n| (Uuid::from_u128(n), n.to_string())).collect::<Vec<_>>();
        let (page, next) = list.cut(2, items(3));
        assert_eq!(page, ["1", "2"]);
        assert_eq!(list.start(&next).unwrap(), Some(Uuid::from_u128(2)));
        assert_eq!(list.cut(2, items(2)), (vec!["1".to_owned(), "2".to_owned()], String::new()));
        assert_eq!(list.cut(2, items(0)), (vec![], String::new()));
    }

    #[test]
    fn p11_a_page_ends_before_it_is_too_large_for_a_client() {
        let list = list("payments", 1, "c");
        let items = (1..=3).map(|n| (Uuid::from_u128(n), "x".repeat(PAGE_BYTES_MAX / 2))).collect();
        let (page, next) = list.cut(3, items);
        assert_eq!(page.len(), 1);
        assert_eq!(list.start(&next).unwrap(), Some(Uuid::from_u128(1)));
    }

    #[test]
    fn p10_a_token_is_good_for_nothing_else() {
        let token = list("payments", 1, "c").token_after(Uuid::from_u128(42));
        let mut other_place = BASE64_URL_SAFE_NO_PAD.decode(&token).unwrap();
        other_place[15] ^= 1;
        let other_place = BASE64_URL_SAFE_NO_PAD.encode(other_place);
        assert!(list("payments", 2, "c").start(&token).is_err(), "another organization");
        assert!(list("payments", 1, "d").start(&token).is_err(), "another filter");
        assert!(list("customers", 1, "c").start(&token).is_err(), "another list");
        assert!(list("payments", 1, "c").start(&other_place).is_err(), "another place");
        for bad in ["x", "!!", &token[1..]] {
            assert!(list("payments", 1, "c").start(bad).is_err(), "{bad}");
        }
    }
}
