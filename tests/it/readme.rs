//! The README, as a test: every grpcurl example of it is sent, in its order, as grpcurl would send it (JSON made into a
//! message by the descriptor set, no generated code), and what it says of events is what the protos say.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use paybridge::dev::sandbox;
use paybridge::dev::stage::{Options, Stage};
use paybridge::domain::events::WEBHOOK_TYPES;
use paybridge::grpc::proto::DESCRIPTOR_SET;
use prost::Message as _;
use prost::bytes::{Buf, BufMut};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions};
use serde_json::{Value, json};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::hands::until;
use crate::support::stage;

const README: &str = include_str!("../../README.md");
const EVENT_PROTO: &str = include_str!("../../proto/paybridge/v1/event.proto");

/// A call that the README shows, and the JSON that it shows as the answer, if any.
struct Example {
    method: String,
    request: String,
    answer: Option<String>,
}

/// Code blocks of the section on the API, with their language.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let section = README.split("\n## The API in examples\n").nth(1).expect("the README has examples");
    let section = section.split("\n## ").next().unwrap_or_default();
    let fenced = section.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').expect("a block begins with its language")).collect()
}

fn examples() -> Result<Vec<Example>> {
    let mut examples: Vec<Example> = Vec::new();
    for (language, block) in blocks() {
        if language == "json" {
            examples.last_mut().context("an answer follows a call")?.answer = Some(block.to_owned());
            continue;
        }
        let (_, rest) = block.split_once("-d '").with_context(|| format!("no request in: {block}"))?;
        let (request, rest) = rest.split_once('\'').with_context(|| format!("the request does not end: {block}"))?;
        let method = rest.split_whitespace().last().context("no method")?;
        examples.push(Example { method: method.to_owned(), request: request.to_owned(), answer: None });
    }
    Ok(examples)
}

/// Messages of any type, encoded and decoded by their descriptors.
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
    let (service, method) = name.split_once('/').with_context(|| format!("no method: {name}"))?;
    let service = pool.get_service_by_name(service).with_context(|| format!("no service {service}"))?;
    service.methods().find(|found| found.name() == method).with_context(|| format!("no method {name}"))
}

/// Sends a request and returns the answer, or the first message that is not a heartbeat, as grpcurl would print it.
async fn call(channel: &Channel, token: &str, method: &MethodDescriptor, request: &Value) -> Result<Value> {
    let message = DynamicMessage::deserialize(method.input(), request.clone())?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let path = PathAndQuery::try_from(format!("/{}/{}", method.parent_service().full_name(), method.name()))?;
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await?;
    let mut answers = client.server_streaming(request, path, Dynamic(method.output())).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        let answer = answer.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())?;
        if answer.get("heartbeat").is_none() {
            return Ok(answer);
        }
    }
    bail!("no answer came")
}

/// The names of all fields of a JSON value, with their paths.
fn names(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}/{name}");
        names(value, &path, found);
        found.insert(path);
    }
}

fn same_names(shown: &Value, told: &Value) -> Result<()> {
    let (mut wanted, mut found) = (BTreeSet::new(), BTreeSet::new());
    names(shown, "", &mut wanted);
    names(told, "", &mut found);
    ensure!(wanted == found, "the README shows {wanted:#?}, but the answer has {found:#?}");
    Ok(())
}

/// Plays all examples as an organization that starts with nothing.
async fn play(stage: &Stage) -> Result<usize> {
    let (_, token) = stage.organization("a reader of the README").await?;
    let channel = Channel::from_shared(stage.servers[0].grpc.clone())?.connect().await?;
    let pool = DescriptorPool::decode(DESCRIPTOR_SET)?;
    let examples = examples()?;
    let mut ids: Vec<(&str, String)> = Vec::new();
    for example in &examples {
        // The newest of a name first.
        let request = ids.iter().rev().fold(example.request.clone(), |text, (name, id)| text.replace(*name, id));
        let request: Value = serde_json::from_str(&request).with_context(|| format!("not JSON: {request}"))?;
        let method = find(&pool, &example.method)?;
        if method.name() == "RetryPayment" {
            // Only what has failed can be tried again.
            let read = find(&pool, "paybridge.v1.PaymentService/GetPayment")?;
            until("the payment has failed", || async {
                let answer = call(&channel, &token, &read, &json!({"id": request["id"]})).await.expect("a payment");
                (answer["payment"]["state"] == "PAYMENT_STATE_FAILED").then_some(())
            })
            .await;
        }
        let answer = call(&channel, &token, &method, &request).await.context(example.method.clone())?;
        if let Some(url) = answer.pointer("/event/payment_provider_customer_checkout_url/checkout_url") {
            // The reader stores a card, as the README says.
            let session = url.as_str().and_then(|url| url.rsplit('/').next()).context("a link to a session")?;
            stage.sandbox.complete_session(session, "4242424242424242", true)?;
        }
        if let Some(shown) = &example.answer {
            same_names(&serde_json::from_str(shown)?, &answer).context(example.method.clone())?;
        }
        for (resource, name) in
            [("integration", "INTEGRATION_ID"), ("customer", "CUSTOMER_ID"), ("payment", "PAYMENT_ID")]
        {
            if let Some(id) = answer.pointer(&format!("/{resource}/id")).and_then(Value::as_str) {
                ids.push((name, id.to_owned()));
            }
        }
    }
    Ok(examples.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_of_the_readme_works_in_its_order() {
    let stage = stage(Options::default()).await;
    let played = play(&stage).await;
    stage.strike().await;
    let count = played.unwrap_or_else(|error| panic!("{error:#}"));
    assert!(count >= 10, "only {count} examples were found");
}

#[test]
fn the_key_in_the_examples_is_the_sandboxs() {
    assert!(README.contains(&format!("\"secret_key\": \"{}\"", sandbox::SECRET_KEY)));
}

/// What rows of a table say: pairs of an event's type and its object's.
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
fn the_readme_lists_the_events_that_the_protos_list() {
    let section = README.split("\n## Events\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    let (readme, protos) = (rows(section, "| "), rows(EVENT_PROTO, "// | "));
    assert!(protos.len() > 20, "only {} types were found", protos.len());
    assert_eq!(readme, protos);
    let types: BTreeSet<&str> = readme.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(types, BTreeSet::from(WEBHOOK_TYPES));
}
