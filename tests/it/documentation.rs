//! Tests the documentation. Sends every call of the README and of `docs/api.md`, in order, as grpcurl would: JSON encoded
//! with the descriptor set, without generated code. Compares the table of `docs/events.md` with the protos.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use paybridge::dev::sandbox;
use paybridge::dev::test_environment::{Options, TestEnvironment};
use paybridge::domain::events::EventType;
use paybridge::grpc::proto::DESCRIPTOR_SET;
use prost::Message as _;
use prost::bytes::{Buf, BufMut};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor, SerializeOptions};
use serde_json::{Value, json};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::support::environment;
use crate::support::wait::until;

const README: &str = include_str!("../../README.md");
const API: &str = include_str!("../../docs/api.md");
const EVENTS: &str = include_str!("../../docs/events.md");
const EVENT_PROTO: &str = include_str!("../../proto/paybridge/v1/event.proto");

/// A call, and its response if the page shows one.
struct Example {
    method: String,
    request: String,
    response: Option<String>,
}

/// The lines of the README's first charge: `call SERVICE/METHOD 'REQUEST'`.
fn first_charge() -> Vec<Example> {
    let calls = README.lines().filter_map(|line| line.strip_prefix("call ")?.strip_suffix('\'')?.split_once(" '"));
    let example = |(method, request): (&str, &str)| Example {
        method: format!("paybridge.v1.{method}"),
        request: request.to_owned(),
        response: None,
    };
    calls.map(example).collect()
}

/// The grpcurl calls of `docs/api.md`.
fn api_examples() -> Result<Vec<Example>> {
    let mut examples: Vec<Example> = Vec::new();
    let fenced = API.split("```").skip(1).step_by(2);
    for (language, block) in fenced.map(|block| block.split_once('\n').expect("a block starts with its language")) {
        if language == "json" {
            examples.last_mut().context("a response follows a call")?.response = Some(block.to_owned());
            continue;
        }
        let (_, rest) = block.split_once("-d '").with_context(|| format!("no request in: {block}"))?;
        let (request, rest) = rest.split_once('\'').with_context(|| format!("the request does not end: {block}"))?;
        let method = rest.split_whitespace().last().context("no method")?;
        examples.push(Example { method: method.to_owned(), request: request.to_owned(), response: None });
    }
    Ok(examples)
}

/// A codec for messages of any type, by their descriptors.
#[derive(Clone)]
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item.encode_to_vec());
        Ok(())
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let message = DynamicMessage::decode(self.0.clone(), bytes);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

fn find(pool: &DescriptorPool, name: &str) -> Result<MethodDescriptor> {
    let (service, method) = name.split_once('/').with_context(|| format!("not a method: {name}"))?;
    let service = pool.get_service_by_name(service).with_context(|| format!("no service {service}"))?;
    service.methods().find(|found| found.name() == method).with_context(|| format!("no method {name}"))
}

/// Sends a request. Returns the first response that is not a heartbeat, as grpcurl would print it.
async fn call(channel: &Channel, token: &str, method: &MethodDescriptor, request: &Value) -> Result<Value> {
    let message = DynamicMessage::deserialize(method.input(), request.clone())?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let path = PathAndQuery::try_from(format!("/{}/{}", method.parent_service().full_name(), method.name()))?;
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await?;
    let mut responses = client.server_streaming(request, path, Dynamic(method.output())).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let response = response.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())?;
        if response.get("heartbeat").is_none() {
            return Ok(response);
        }
    }
    bail!("the call returned no message")
}

/// Collects the paths of all fields of a JSON value.
fn names(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}/{name}");
        names(value, &path, found);
        found.insert(path);
    }
}

fn check_names(shown: &Value, actual: &Value) -> Result<()> {
    let (mut wanted, mut found) = (BTreeSet::new(), BTreeSet::new());
    names(shown, "", &mut wanted);
    names(actual, "", &mut found);
    ensure!(wanted == found, "the page shows {wanted:#?}, but the response has {found:#?}");
    Ok(())
}

/// Sends all calls in a new organization.
async fn run_examples(environment: &TestEnvironment, examples: &[Example]) -> Result<()> {
    let (_, token) = environment.organization("a reader").await?;
    let channel = Channel::from_shared(environment.servers[0].grpc.clone())?.connect().await?;
    let pool = DescriptorPool::decode(DESCRIPTOR_SET)?;
    let mut ids: Vec<(&str, String)> = Vec::new();
    for example in examples {
        // Newest id first.
        let request = ids.iter().rev().fold(example.request.clone(), |text, (name, id)| text.replace(*name, id));
        let request: Value = serde_json::from_str(&request).with_context(|| format!("not JSON: {request}"))?;
        let method = find(&pool, &example.method)?;
        if method.name() == "RetryPayment" {
            // Only a failed payment can be retried.
            let read = find(&pool, "paybridge.v1.PaymentService/GetPayment")?;
            until("the payment has failed", async || {
                let response = call(&channel, &token, &read, &json!({"invoice_id": request["invoice_id"]}))
                    .await
                    .expect("a payment");
                (response["payment"]["state"] == "PAYMENT_STATE_FAILED").then_some(())
            })
            .await;
        }
        let response = call(&channel, &token, &method, &request).await.context(example.method.clone())?;
        if let Some(url) = response.pointer("/event/payment_provider_customer_checkout_url/checkout_url") {
            // The page asks the reader to store a card.
            let session = url.as_str().and_then(|url| url.rsplit('/').next()).context("a link to a session")?;
            environment.sandbox.complete_session(session, "4242424242424242", true)?;
        }
        if let Some(shown) = &example.response {
            check_names(&serde_json::from_str(shown)?, &response).context(example.method.clone())?;
        }
        for (resource, name) in [("integration", "INTEGRATION_ID"), ("payment", "PAYMENT_ID")] {
            if let Some(id) = response.pointer(&format!("/{resource}/id")).and_then(Value::as_str) {
                ids.push((name, id.to_owned()));
            }
        }
    }
    Ok(())
}

async fn check_examples(examples: &[Example], at_least: usize) {
    assert!(examples.len() >= at_least, "only {} examples found", examples.len());
    let environment = environment(Options::default()).await;
    let result = run_examples(&environment, examples).await;
    environment.shutdown().await;
    result.unwrap_or_else(|error| panic!("{error:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_charge_of_the_readme_works() {
    check_examples(&first_charge(), 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_of_the_api_page_work_in_order() {
    check_examples(&api_examples().expect("the page can be read"), 10).await;
}

#[test]
fn the_examples_use_the_sandboxs_key() {
    let key = format!("\"secret_key\": \"{}\"", sandbox::SECRET_KEY);
    assert!(README.contains(&key) && API.contains(&key));
}

/// The rows of a table, as pairs of `webhook_type` and `object_type`.
fn rows(text: &str, begin: &str) -> BTreeSet<(String, String)> {
    let rows = text.lines().filter_map(|line| line.strip_prefix(begin));
    let mut pairs = BTreeSet::new();
    for row in rows {
        let row = row.replace('`', "");
        let mut cells = row.split('|').map(str::trim);
        let (types, object) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        for kind in types.split(", ").filter(|kind| kind.contains('.') || *kind == "provider_event") {
            pairs.insert((kind.to_owned(), object.to_owned()));
        }
    }
    pairs
}

#[test]
fn the_page_lists_the_events_of_the_protos() {
    let section = EVENTS.split("\n## Types\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    let (page, protos) = (rows(section, "| "), rows(EVENT_PROTO, "// | "));
    assert!(protos.len() > 20, "only {} types found", protos.len());
    assert_eq!(page, protos);
    let types = EventType::ALL.iter().map(|kind| (kind.as_str().to_owned(), kind.object_type().as_str().to_owned()));
    assert_eq!(page, types.collect::<BTreeSet<_>>());
}

/// Both vocabularies are explained: every id of an event is in the first column of the table.
#[test]
fn the_page_explains_every_id_of_an_event() {
    let section = EVENTS.split("\n## Two vocabularies\n").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = section.unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let words = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let explained: BTreeSet<String> = words.map(str::to_owned).collect();
    let pool = DescriptorPool::decode(DESCRIPTOR_SET).expect("the descriptors");
    let event = pool.get_message_by_name("paybridge.v1.Event").expect("the message");
    let (mut queue, mut seen, mut ids) = (vec![event], BTreeSet::new(), BTreeSet::new());
    while let Some(message) = queue.pop() {
        for field in message.fields() {
            if let Kind::Message(part) = field.kind()
                && seen.insert(part.full_name().to_owned())
            {
                queue.push(part);
            }
            if field.name() == "id" || field.name().ends_with("_id") || field.name().ends_with("_ids") {
                ids.insert(field.name().to_owned());
            }
        }
    }
    assert!(ids.len() > 15, "only {ids:?}");
    let missing: Vec<_> = ids.difference(&explained).collect();
    assert!(missing.is_empty(), "the table lacks {missing:?}");
}
