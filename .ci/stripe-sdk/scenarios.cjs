// Runs the Stripe side of the scenarios with Stripe's own SDK, which we did not write, to show that the sandbox behaves
// like Stripe. Every step checks how the SDK understood the sandbox's response. PAYBRIDGE_SANDBOX_URL is the sandbox's
// URL; actions of payers and banks go through its control plane.
"use strict";

const assert = require("node:assert/strict");
const http = require("node:http");
const Stripe = require("stripe");

const base = new URL(process.env.PAYBRIDGE_SANDBOX_URL ?? assert.fail("PAYBRIDGE_SANDBOX_URL names no sandbox"));
const DAHLIA = "2026-08-26.dahlia";

// The interval between requests: the sandbox enforces the test-mode limit of 25 requests per second.
const INTERVAL = 50;
let previous = Promise.resolve();

function rateLimited() {
  const plain = Stripe.createNodeHttpClient();
  const send = plain.makeRequest.bind(plain);
  plain.makeRequest = async (...request) => {
    const current = previous;
    previous = current.then(() => new Promise((resolve) => setTimeout(resolve, INTERVAL)));
    await current;
    return send(...request);
  };
  return plain;
}

/** A client that pins an API version; `undefined` selects the SDK's own. */
function client(key, apiVersion) {
  return new Stripe(key, {
    protocol: "http",
    host: base.hostname,
    port: Number(base.port),
    ...(apiVersion && { apiVersion }),
    maxNetworkRetries: 2,
    telemetry: false,
    httpClient: rateLimited(),
  });
}

async function control(path, body = {}) {
  const response = await fetch(new URL(`/_sandbox/${path}`, base), { method: "POST", body: JSON.stringify(body) });
  const value = await response.json();
  assert.equal(response.status, 200, `${path}: ${JSON.stringify(value)}`);
  return value;
}

async function ledger(account) {
  const response = await fetch(new URL("/_sandbox/ledger", base));
  return (await response.json()).filter((entry) => entry.account === account);
}

/** Returns the error of a call that must fail. */
async function refused(call) {
  try {
    await call;
  } catch (error) {
    return error;
  }
  return assert.fail("this should have been refused");
}

/** A local webhook endpoint that records the posts, and responds to the first `refusals` of them with 500. */
async function listen(refusals = 0) {
  const posts = [];
  let wake = () => {};
  const server = http.createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      posts.push({ body: Buffer.concat(chunks), signature: request.headers["stripe-signature"] });
      response.statusCode = posts.length > refusals ? 200 : 500;
      response.end();
      wake();
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}/webhooks`,
    close: () => server.close(),
    /** Waits for a webhook that the SDK verifies and that `wanted` accepts. */
    async next(stripe, secret, wanted) {
      const deadline = Date.now() + 20_000;
      for (let at = 0; ; at += 1) {
        while (at >= posts.length) {
          assert.ok(Date.now() < deadline, `no such webhook among ${posts.length}`);
          await new Promise((resolve) => {
            wake = resolve;
            setTimeout(resolve, 1_000).unref();
          });
        }
        const event = stripe.webhooks.constructEvent(posts[at].body, posts[at].signature, secret);
        if (wanted(event, posts[at])) return { event, post: posts[at] };
      }
    },
  };
}

const steps = [];
const step = (name, run) => steps.push({ name, run });
const context = {};

step("an account is opened and the SDK reads it", async () => {
  const { id, key } = await control("accounts", { country: "DE", default_currency: "eur" });
  Object.assign(context, { account: id, key, stripe: client(key, DAHLIA) });
  const account = await context.stripe.accounts.retrieveCurrent();
  assert.deepEqual([account.id, account.default_currency, account.charges_enabled], [id, "eur", true]);
  assert.equal(account.lastResponse.headers["stripe-version"], DAHLIA);
});

step("wrong keys are refused, each with its own reason", async () => {
  const wrong = await refused(client("sk_test_wrong", DAHLIA).accounts.retrieveCurrent());
  assert.equal(wrong.type, "StripeAuthenticationError");
  const publishable = await refused(client("pk_test_sandbox", DAHLIA).accounts.retrieveCurrent());
  assert.deepEqual([publishable.type, publishable.code], ["StripeAuthenticationError", "secret_key_required"]);
  const { key } = await control("keys", { account: context.account, scopes: ["rak_customer_read"] });
  const lacking = await refused(client(key, DAHLIA).customers.create({}));
  assert.equal(lacking.type, "StripePermissionError");
  assert.match(lacking.message, /rak_customer_write/);
});

step("a webhook endpoint is registered and returns its secret once", async () => {
  context.listener = await listen();
  const made = await context.stripe.webhookEndpoints.create({
    url: context.listener.url,
    enabled_events: ["*"],
    api_version: DAHLIA,
  });
  assert.match(made.secret, /^whsec_/);
  assert.equal((await context.stripe.webhookEndpoints.retrieve(made.id)).secret, undefined);
  Object.assign(context, { secret: made.secret, endpoint: made.id });
});

step("a customer is created once, however often it is requested", async () => {
  const wanted = { name: "Jenny Rosen", email: "jenny@example.com", metadata: { external_id: "hooli_1234" } };
  const first = await context.stripe.customers.create(wanted, { idempotencyKey: "customer-1" });
  const again = await context.stripe.customers.create(wanted, { idempotencyKey: "customer-1" });
  assert.equal(first.id, again.id);
  assert.equal(again.lastResponse.headers["idempotent-replayed"], "true");
  const other = await refused(context.stripe.customers.create({ name: "Joan" }, { idempotencyKey: "customer-1" }));
  assert.equal(other.type, "StripeIdempotencyError");
  context.customer = first.id;
});

step("the SDK verifies its webhook, and refuses a changed body", async () => {
  const { event, post } = await context.listener.next(context.stripe, context.secret, (e) => e.type === "customer.created");
  assert.equal(event.data.object.id, context.customer);
  assert.deepEqual([event.api_version, event.request.idempotency_key], [DAHLIA, "customer-1"]);
  const changed = Buffer.from(post.body.toString().replace("Jenny", "Janny"));
  assert.throws(() => context.stripe.webhooks.constructEvent(changed, post.signature, context.secret), {
    type: "StripeSignatureVerificationError",
  });
});

step("a completed setup session stores the method and moves no money", async () => {
  const session = await context.stripe.checkout.sessions.create({
    mode: "setup",
    customer: context.customer,
    payment_method_types: ["card"],
    success_url: "https://example.com/done",
    setup_intent_data: { metadata: { reason: "scenario" } },
  });
  assert.deepEqual([session.status, session.expires_at - session.created], ["open", 24 * 60 * 60]);
  assert.equal((await fetch(session.url)).status, 200);
  await control(`checkout/${session.id}/complete`, { method: "4242424242424242" });
  const done = await context.stripe.checkout.sessions.retrieve(session.id, { expand: ["setup_intent.payment_method"] });
  assert.deepEqual([done.status, done.setup_intent.status], ["complete", "succeeded"]);
  context.card = done.setup_intent.payment_method.id;
  assert.equal(done.setup_intent.payment_method.customer, context.customer);
  assert.deepEqual(await ledger(context.account), []);
  const methods = await context.stripe.customers.listPaymentMethods(context.customer, { type: "card" });
  assert.deepEqual(methods.data.map((method) => method.id), [context.card]);
  const completed = (e) => e.type === "checkout.session.completed";
  assert.equal((await context.listener.next(context.stripe, context.secret, completed)).event.data.object.id, session.id);
});

step("the default method is set", async () => {
  const customer = await context.stripe.customers.update(context.customer, {
    invoice_settings: { default_payment_method: context.card },
  });
  assert.equal(customer.invoice_settings.default_payment_method, context.card);
  const updated = (e) => e.type === "customer.updated";
  const { event } = await context.listener.next(context.stripe, context.secret, updated);
  assert.equal(event.data.previous_attributes.invoice_settings.default_payment_method, null);
});

const intent = (more) => ({
  amount: 4900,
  currency: "eur",
  customer: context.customer,
  payment_method_types: ["card", "sepa_debit"],
  metadata: { invoice_id: "invoice-1" },
  ...more,
});

step("an invoice is charged in two steps, off session, once", async () => {
  const made = await context.stripe.paymentIntents.create(intent(), { idempotencyKey: "intent-1" });
  assert.equal(made.status, "requires_payment_method");
  const confirm = () =>
    context.stripe.paymentIntents.confirm(
      made.id,
      { payment_method: context.card, off_session: true, payment_method_types: ["card"] },
      { idempotencyKey: "confirm-1" },
    );
  const paid = await Promise.all([confirm(), confirm(), confirm()]);
  assert.deepEqual(paid.map((one) => one.status), ["succeeded", "succeeded", "succeeded"]);
  const charges = await ledger(context.account);
  assert.deepEqual(charges.map((one) => [one.status, one.amount, one.metadata.invoice_id]), [["succeeded", 4900, "invoice-1"]]);
  const finished = await refused(context.stripe.paymentIntents.confirm(made.id, { payment_method: context.card }));
  assert.equal(finished.code, "payment_intent_unexpected_state");
  context.paid = made.id;
});

step("a card is declined, and another method pays the same intent", async () => {
  const bad = await context.stripe.paymentMethods.attach("pm_card_chargeCustomerFail", { customer: context.customer });
  const error = await refused(
    context.stripe.paymentIntents.create(intent({ payment_method: bad.id, confirm: true, off_session: true })),
  );
  assert.deepEqual(
    [error.type, error.statusCode, error.code, error.decline_code, error.raw.advice_code],
    ["StripeCardError", 402, "card_declined", "generic_decline", "try_again_later"],
  );
  assert.equal(error.payment_intent.status, "requires_payment_method");
  const paid = await context.stripe.paymentIntents.confirm(error.payment_intent.id, {
    payment_method: context.card,
    off_session: true,
  });
  assert.equal(paid.status, "succeeded");
  const issuer = await refused(context.stripe.paymentMethods.attach("pm_card_chargeDeclined", { customer: context.customer }));
  assert.equal(issuer.code, "card_declined");
});

step("a bank debit is processing until the bank responds days later", async () => {
  for (const [iban, status] of [["DE89370400440532013000", "succeeded"], ["DE62370400440532013001", "requires_payment_method"]]) {
    const session = await context.stripe.checkout.sessions.create({
      mode: "setup",
      customer: context.customer,
      payment_method_types: ["sepa_debit"],
      success_url: "https://example.com/done",
    });
    await control(`checkout/${session.id}/complete`, { method: iban });
    const { setup_intent: setup } = await context.stripe.checkout.sessions.retrieve(session.id, { expand: ["setup_intent"] });
    assert.equal((await context.stripe.mandates.retrieve(setup.mandate)).status, "active");
    const debit = await context.stripe.paymentIntents.create(
      intent({ payment_method: setup.payment_method, confirm: true, off_session: true }),
    );
    assert.equal(debit.status, "processing");
    assert.equal((await control("settle", { payment_intent: debit.id })).settled, 1);
    assert.equal((await context.stripe.paymentIntents.retrieve(debit.id)).status, status);
  }
  const failed = (e) => e.type === "payment_intent.payment_failed" && e.request.id === null;
  const { event } = await context.listener.next(context.stripe, context.secret, failed);
  assert.equal(event.data.object.last_payment_error.code, "payment_intent_payment_attempt_failed");
  const dollars = await refused(
    context.stripe.paymentIntents.create(intent({ currency: "usd", payment_method_types: ["sepa_debit"] })),
  );
  assert.equal(dollars.param, "payment_method_types");
});

step("a payment is refunded", async () => {
  const refund = await context.stripe.refunds.create({ payment_intent: context.paid, amount: 1000 });
  assert.deepEqual([refund.status, refund.amount], ["succeeded", 1000]);
  const more = await refused(context.stripe.refunds.create({ payment_intent: context.paid, amount: 4000 }));
  assert.deepEqual([more.type, more.param], ["StripeInvalidRequestError", "amount"]);
  const found = await context.stripe.paymentIntents.retrieve(context.paid, { expand: ["latest_charge"] });
  assert.equal(found.latest_charge.amount_refunded, 1000);
});

step("invalid parameters are refused, not ignored", async () => {
  const unknown = await refused(context.stripe.customers.create({ nonsense: 1 }));
  assert.deepEqual([unknown.code, unknown.param], ["parameter_unknown", "nonsense"]);
  const small = await refused(context.stripe.paymentIntents.create(intent({ amount: 49 })));
  assert.equal(small.code, "amount_too_small");
  const both = await refused(context.stripe.paymentIntents.create(intent({ allowed_payment_method_types: ["card"] })));
  assert.match(both.message, /You may only specify one of these parameters/);
  const missing = await refused(context.stripe.customers.retrieve("cus_none"));
  assert.deepEqual([missing.code, missing.statusCode], ["resource_missing", 404]);
});

step("the SDK's own retries succeed", async () => {
  const fault = (action) => control("faults", { method: "POST", path: "/v1/customers", account: context.account, action });
  await fault({ kind: "cut", work: "done" });
  const customer = await context.stripe.customers.create({ name: "Cut" });
  await fault({ kind: "unavailable" });
  await context.stripe.customers.create({ name: "Unavailable" });
  const cut = await context.stripe.customers.list({ limit: 100 }).autoPagingToArray({ limit: 1000 });
  assert.deepEqual(cut.filter((one) => one.name === "Cut").map((one) => one.id), [customer.id]);
});

step("the events list returns all events in pages", async () => {
  const events = await context.stripe.events.list({ limit: 5 }).autoPagingToArray({ limit: 1000 });
  const first = events.at(-1);
  const later = await context.stripe.events.list({ ending_before: first.id, limit: 1 });
  assert.deepEqual([later.data.length, later.has_more], [1, true]);
  assert.equal((await context.stripe.events.retrieve(first.id)).id, first.id);
  assert.equal(new Set(events.map((event) => event.id)).size, events.length);
});

step("events of changes in the Dashboard have no request id", async () => {
  await control(`payment_methods/${context.card}/detach`);
  const detached = (e) => e.type === "payment_method.detached" && e.data.object.id === context.card;
  assert.equal((await context.listener.next(context.stripe, context.secret, detached)).event.request.id, null);
  await control(`customers/${context.customer}/delete`);
  assert.equal((await context.stripe.customers.retrieve(context.customer)).deleted, true);
});

step("the webhook endpoint is deleted", async () => {
  assert.equal((await context.stripe.webhookEndpoints.del(context.endpoint)).deleted, true);
  assert.deepEqual((await context.stripe.webhookEndpoints.list()).data, []);
});

steps.push(...require("./kinds.cjs")({ client, control, refused, listen, DAHLIA }));

(async () => {
  console.log(`Stripe's SDK ${Stripe.PACKAGE_VERSION ?? require("stripe/package.json").version} against ${base.href}`);
  for (const { name, run } of steps) {
    try {
      await run();
      console.log(`  ok    ${name}`);
    } catch (error) {
      console.error(`  FAIL  ${name}\n`, error);
      process.exitCode = 1;
      break;
    }
  }
  context.listener?.close();
  // The SDK's timeouts and open connections would keep the process alive for more than a minute.
  process.exit();
})();
