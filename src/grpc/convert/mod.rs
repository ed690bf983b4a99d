//! Converts between proto and domain, one file per resource. Requests are parsed with [`Fields`], which collects all
//! violations, so that a caller can correct a request at once.

use std::ops::RangeInclusive;

use prost_types::{FieldMask, Timestamp};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::{Currency, Error, Money, Result, Violation};
use crate::grpc::proto;

pub(super) mod customers;
pub(super) mod events;
pub(super) mod integrations;
mod names;
pub(super) mod payment_methods;
pub(super) mod payments;
pub(super) mod refunds;

/// The page size if the request sets none.
const PAGE_SIZE_DEFAULT: i32 = 50;
/// The largest page (P11).
const PAGE_SIZE_MAX: usize = 1_000;
/// The maximum length of a `request_id`.
const REQUEST_ID_LENGTH_MAX: usize = 64;
/// The maximum length of a URL.
const URL_LENGTH_MAX: usize = 1_024;
/// The years of a valid time. Every part of the system can represent them.
const YEARS: RangeInclusive<i32> = 1970..=9999;

/// Parses the fields of one request. A method that finds a violation records it and returns a placeholder.
/// [`Fields::check`] then fails with all violations.
#[derive(Default)]
pub(super) struct Fields {
    violations: Vec<Violation>,
}

impl Fields {
    /// Fails if there are violations. Parsed values must not be used before.
    pub(super) fn check(self) -> Result<()> {
        if self.violations.is_empty() { Ok(()) } else { Err(Error::Invalid(self.violations)) }
    }

    /// Parses a request that has one field, and checks it.
    pub(super) fn parse_one<T>(parse: impl FnOnce(&mut Self) -> T) -> Result<T> {
        let mut fields = Self::default();
        let parsed = parse(&mut fields);
        fields.check().map(|()| parsed)
    }

    /// Records a violation of `field`.
    pub(super) fn add_violation(&mut self, field: &str, description: impl Into<String>) {
        self.violations.push(Violation::new(field, description));
    }

    /// Text of at most `length_max` characters, without control characters. May be empty.
    pub(super) fn text(&mut self, field: &str, text: String, length_max: usize) -> String {
        let length = text.chars().count();
        if length > length_max {
            self.add_violation(field, format!("must have at most {length_max} characters, not {length}"));
        }
        if text.chars().any(char::is_control) {
            self.add_violation(field, "must have no control characters");
        }
        text
    }

    /// Text as for [`text`](Self::text), but not blank.
    pub(super) fn required_text(&mut self, field: &str, text: String, length_max: usize) -> String {
        if text.trim().is_empty() {
            self.add_violation(field, "is required");
        }
        self.text(field, text, length_max)
    }

    /// A required id that Paybridge assigned.
    pub(super) fn id<T: From<Uuid>>(&mut self, field: &str, id: &str) -> T {
        if id.is_empty() {
            self.add_violation(field, "is required");
        }
        self.optional_id(field, id).unwrap_or_else(|| Uuid::nil().into())
    }

    /// An optional id that Paybridge assigned.
    pub(super) fn optional_id<T: From<Uuid>>(&mut self, field: &str, id: &str) -> Option<T> {
        if id.is_empty() {
            return None;
        }
        let parsed = Uuid::try_parse(id).ok();
        if parsed.is_none() {
            self.add_violation(field, "must be a UUID, such as 01890a5d-ac96-774b-bcce-b302099a8057");
        }
        parsed.map(T::from)
    }

    /// A `request_id`. Every call that creates something requires one.
    pub(super) fn request_id(&mut self, request_id: String) -> String {
        if request_id.is_empty() {
            self.add_violation("request_id", "is required: choose an id, with which repeating the call is safe");
        } else if request_id.len() > REQUEST_ID_LENGTH_MAX || !request_id.chars().all(|it| it.is_ascii_graphic()) {
            let text = format!("must have 1 to {REQUEST_ID_LENGTH_MAX} printable ASCII characters and no spaces");
            self.add_violation("request_id", text);
        }
        request_id
    }

    /// An optional absolute http or https URL.
    pub(super) fn optional_url(&mut self, field: &str, url: String) -> Option<String> {
        if url.is_empty() {
            return None;
        }
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let is_clean = url.chars().all(|it| it.is_ascii_graphic());
        let has_host = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', '?', '#', ':']));
        if !is_clean || !has_host || url.len() > URL_LENGTH_MAX {
            let text = format!("must be an absolute http or https URL of at most {URL_LENGTH_MAX} ASCII characters");
            self.add_violation(field, text);
        }
        Some(url)
    }

    /// A required amount.
    pub(super) fn money(&mut self, field: &str, money: Option<&proto::Money>) -> Money {
        let placeholder = Money { minor_units: 0, currency: Currency::EUR };
        let Some(money) = money else {
            self.add_violation(field, "is required");
            return placeholder;
        };
        // Upper case only, because `eur` and `EUR` would be different bodies of one request_id.
        let is_upper = money.currency_code.chars().all(|it| it.is_ascii_uppercase());
        let currency = Currency::parse(&money.currency_code).filter(|_| is_upper);
        let Some(currency) = currency.filter(|currency| currency.is_supported()) else {
            let description = currency
                .map_or("must be an ISO 4217 code of three upper case letters".to_owned(), |code| {
                    format!("must be a currency that Stripe charges in; {code} is not")
                });
            self.add_violation(&format!("{field}.currency_code"), description);
            if money.minor_units < 0 {
                self.add_violation(&format!("{field}.minor_units"), "must not be negative");
            }
            return placeholder;
        };
        let money = Money { minor_units: money.minor_units, currency };
        if let Some(rejection) = money.rejection() {
            self.add_violation(&format!("{field}.minor_units"), rejection);
        }
        money
    }

    /// An optional time.
    pub(super) fn optional_time(&mut self, field: &str, time: Option<Timestamp>) -> Option<OffsetDateTime> {
        let time = time?;
        let parsed = u32::try_from(time.nanos)
            .ok()
            .and_then(|nanos| OffsetDateTime::from_unix_timestamp(time.seconds).ok()?.replace_nanosecond(nanos).ok())
            .filter(|time| YEARS.contains(&time.year()));
        if parsed.is_none() {
            self.add_violation(field, "must be a time between 1970 and 9999");
        }
        parsed
    }

    /// The page size.
    pub(super) fn page_size(&mut self, page_size: i32) -> usize {
        if page_size < 0 {
            self.add_violation("page_size", "must not be negative; 0 means 50");
        }
        let page_size = if page_size == 0 { PAGE_SIZE_DEFAULT } else { page_size };
        usize::try_from(page_size).unwrap_or(1).min(PAGE_SIZE_MAX)
    }

    /// The version in an optional `etag`.
    pub(super) fn optional_etag(&mut self, field: &str, etag: &str) -> Option<i64> {
        if etag.is_empty() {
            return None;
        }
        let version = etag.parse().ok();
        if version.is_none() {
            self.add_violation(field, "is not a valid etag; send the one from the resource as read, or leave it empty");
        }
        version
    }
}

pub(super) fn timestamp(time: OffsetDateTime) -> Timestamp {
    Timestamp { seconds: time.unix_timestamp(), nanos: time.nanosecond().cast_signed() }
}

pub(super) fn money(money: Money) -> proto::Money {
    proto::Money { minor_units: money.minor_units, currency_code: money.currency.as_str().to_owned() }
}

/// The `etag` of a version.
pub(super) fn etag(version: i64) -> String {
    version.to_string()
}

/// The fields that an update sets: those named by the mask, all for `*`, and without a mask those that are populated.
/// `known` lists the fields that can be set, and whether each is populated. Other names in the mask are violations.
pub(super) fn masked_fields<'a>(
    fields: &mut Fields,
    mask: Option<&FieldMask>,
    known: &[(&'a str, bool)],
) -> Vec<&'a str> {
    let Some(mask) = mask else {
        return known.iter().filter(|(_, populated)| *populated).map(|(name, _)| *name).collect();
    };
    if mask.paths.iter().any(|path| path == "*") {
        return known.iter().map(|(name, _)| *name).collect();
    }
    let names = || known.iter().map(|(name, _)| *name);
    for path in &mask.paths {
        if !names().any(|name| name == path) {
            let listed = names().collect::<Vec<_>>().join(", ");
            let path: String = path.chars().take(64).collect();
            fields.add_violation("update_mask", format!("`{path}` cannot be set; use {listed}, or `*`"));
        }
    }
    names().filter(|name| mask.paths.iter().any(|path| path == name)).collect()
}

/// Checks an update that names no fields, or all by `*`: the immutable fields that it sets have the present values. Each
/// comes with its path, the value in the request, and the present one.
pub(super) fn check_immutable(mask: Option<&FieldMask>, immutable: &[(&str, &str, &str)]) -> Result<()> {
    if mask.is_some_and(|mask| mask.paths.iter().all(|path| path != "*")) {
        return Ok(());
    }
    let mut fields = Fields::default();
    for (path, requested, present) in immutable {
        if !requested.is_empty() && requested != present {
            fields.add_violation(path, format!("is immutable: leave it empty, or send its value `{present}`"));
        }
    }
    fields.check()
}

#[cfg(test)]
mod tests {

    use super::*;

    /// The fields whose violations `parse` records.
    fn violations(parse: impl FnOnce(&mut Fields)) -> Vec<String> {
        let mut fields = Fields::default();
        parse(&mut fields);
        fields.violations.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn all_violations_are_collected() {
        let mut fields = Fields::default();
        fields.request_id(String::new());
        fields.id::<Uuid>("id", "not-a-uuid");
        fields.page_size(-1);
        let Err(Error::Invalid(violations)) = fields.check() else { panic!("the request is invalid") };
        let named: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(named, ["request_id", "id", "page_size"]);
    }

    #[test]
    fn page_sizes_have_a_default_and_a_limit() {
        let size = |requested| Fields::default().page_size(requested);
        assert_eq!((size(0), size(7), size(1_000), size(i32::MAX)), (50, 7, 1_000, 1_000), "P11");
        assert_eq!(violations(|it| _ = it.page_size(-1)), ["page_size"]);
    }

    #[test]
    fn request_ids_are_short_and_printable() {
        for good in ["r", "01890a5d-ac96-774b-bcce-b302099a8057", &"x".repeat(64)] {
            assert!(violations(|it| _ = it.request_id(good.into())).is_empty(), "{good}");
        }
        for bad in ["", "a b", "ü", "a\n", &"x".repeat(65)] {
            assert_eq!(violations(|it| _ = it.request_id(bad.into())), ["request_id"], "{bad}");
        }
    }

    #[test]
    fn text_has_a_length_and_no_control_characters() {
        assert!(violations(|it| _ = it.text("name", "Hooli GmbH & Söhne".into(), 255)).is_empty());
        assert_eq!(violations(|it| _ = it.text("name", "nul\0".into(), 255)), ["name"], "Postgres takes no NUL");
        assert_eq!(violations(|it| _ = it.text("name", "äää".into(), 2)), ["name"]);
        assert_eq!(violations(|it| _ = it.required_text("name", " ".into(), 2)), ["name"]);
    }

    #[test]
    fn urls_are_absolute() {
        for good in ["https://billing.example/done?x=1", "http://localhost:3000/"] {
            assert!(violations(|it| _ = it.optional_url("url", good.into())).is_empty(), "{good}");
        }
        for bad in ["billing.example", "/done", "javascript:alert(1)", "https://", "https:///x", "https://a b"] {
            assert_eq!(violations(|it| _ = it.optional_url("url", bad.into())), ["url"], "{bad}");
        }
        assert_eq!(Fields::default().optional_url("url", String::new()), None);
    }

    #[test]
    fn amount_and_currency_are_checked_separately() {
        let of = |minor_units, code: &str| Some(proto::Money { minor_units, currency_code: code.into() });
        let violations = |money: Option<proto::Money>| violations(|it| _ = it.money("amount", money.as_ref()));
        assert!(violations(of(4900, "EUR")).is_empty());
        assert!(violations(of(0, "EUR")).is_empty());
        assert_eq!(violations(None), ["amount"]);
        assert_eq!(violations(of(-1, "EUR")), ["amount.minor_units"]);
        assert_eq!(violations(of(1, "eur")), ["amount.currency_code"]);
        assert_eq!(violations(of(-1, "")), ["amount.currency_code", "amount.minor_units"]);
        assert_eq!(violations(of(0, "XXQ")), ["amount.currency_code"]);
        assert_eq!(violations(of(1, "ISK")), ["amount.minor_units"]);
        assert_eq!(violations(of(100_000, "ISK")), [""; 0]);
    }

    #[test]
    fn times_round_trip() {
        let original = Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 };
        let time = Fields::default().optional_time("start_time", Some(original)).unwrap();
        assert_eq!(timestamp(time), original);
        for (seconds, nanos) in [(i64::MAX, 0), (-1, 0), (0, -1), (0, 1_000_000_000)] {
            let bad = Timestamp { seconds, nanos };
            assert_eq!(violations(|it| _ = it.optional_time("start_time", Some(bad))), ["start_time"], "{bad:?}");
        }
    }

    #[test]
    fn a_mask_names_the_fields_to_set_and_absent_never_resets() {
        let known = [("name", true), ("email", false)];
        let set = |paths: Option<&[&str]>| {
            let mask = paths.map(|paths| FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
            masked_fields(&mut Fields::default(), mask.as_ref(), &known)
        };
        assert_eq!(set(None), ["name"], "only what is populated");
        assert_eq!(set(Some(&["email"])), ["email"], "named, so it is emptied");
        assert_eq!(set(Some(&["*"])), ["name", "email"]);
        let unknown = Some(FieldMask { paths: vec!["state".into()] });
        assert_eq!(violations(|it| _ = masked_fields(it, unknown.as_ref(), &known)), ["update_mask"]);
    }

    #[test]
    fn an_immutable_field_keeps_its_value() {
        let changed = |paths: Option<&[&str]>, requested: &str| {
            let mask = paths.map(|paths| FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
            check_immutable(mask.as_ref(), &[("customer.external_id", requested, "hooli_1234")])
        };
        assert!(changed(None, "").is_ok());
        assert!(changed(None, "hooli_1234").is_ok());
        assert!(changed(Some(&["name"]), "initech").is_ok(), "the mask leaves it out");
        for paths in [None, Some(&["*"][..])] {
            let Err(Error::Invalid(violations)) = changed(paths, "initech") else { panic!("it must be refused") };
            assert_eq!(violations[0].field, "customer.external_id");
        }
    }
}
