// One case for each further kind of behaviour that Stripe's SDK meets. Each runs with a client that pins an API version
// and with one that uses the SDK's own.
"use strict";

const assert = require("node:assert/strict");

/** The allowed kinds of an intent or session. The parameter was renamed in endive. */
function kinds(pinned, ...types) {
  return pinned ? { payment_method_types: types } : {};
}

/** What a payer's browser sends to accept a mandate. */
const ACCEPTED = {
  customer_acceptance: { type: "online", online: { ip_address: "203.0.113.7", user_agent: "Browser/1" } },
};

module.exports = ({ client, control, refused, listen, DAHLIA }) => {
  /** A new account and a client for it. */
  const opened = async (pinned) => {
    const { key } = await control("accounts", { country: "DE", default_currency: "eur" });
    return { key, stripe: client(key, pinned ? DAHLIA : undefined) };
  };

  const cases = {
    async "a known API version is echoed and an unknown one refused"(pinned) {
      const { key, stripe } = await opened(pinned);
      const version = async (one) => (await one.accounts.retrieveCurrent()).lastResponse.headers["stripe-version"];
      const own = await version(stripe);
      assert.equal(own === DAHLIA, pinned);
      assert.equal(await version(client(key, "2020-08-27")), "2020-08-27");
      const unknown = await refused(client(key, "2020-08-28").accounts.retrieveCurrent());
      assert.deepEqual([unknown.statusCode, unknown.code, unknown.param], [400, undefined, undefined]);
      const written = stripe.paymentIntents.create({ amount: 4900, currency: "eur", payment_method_types: ["card"] });
      if (pinned) assert.equal((await written).status, "requires_payment_method");
      else assert.equal((await refused(written)).param, "payment_method_types");
    },

    async "every declined card has its decline_code"(pinned) {
      const { stripe } = await opened(pinned);
      const declines = {
        pm_card_visa_chargeDeclined: ["card_declined", "generic_decline"],
        pm_card_visa_chargeDeclinedInsufficientFunds: ["card_declined", "insufficient_funds"],
        pm_card_visa_chargeDeclinedLostCard: ["card_declined", "lost_card"],
        pm_card_chargeDeclinedExpiredCard: ["expired_card", "expired_card"],
        pm_card_chargeDeclinedIncorrectCvc: ["incorrect_cvc", "incorrect_cvc"],
        pm_card_chargeDeclinedProcessingError: ["processing_error", "processing_error"],
      };
      for (const [method, wanted] of Object.entries(declines)) {
        const intent = await stripe.paymentIntents.create({ amount: 4900, currency: "eur", ...kinds(pinned, "card") });
        const more = { payment_method: method, return_url: "https://example.com/back" };
        const error = await refused(stripe.paymentIntents.confirm(intent.id, more));
        assert.deepEqual([error.type, error.code, error.decline_code], ["StripeCardError", ...wanted], method);
      }
    },

    async "a raw card number is refused"(pinned) {
      const { stripe } = await opened(pinned);
      const card = { number: "4242424242424242", exp_month: 12, exp_year: 2034, cvc: "123" };
      const error = await refused(stripe.paymentMethods.create({ type: "card", card }));
      assert.deepEqual([error.statusCode, error.rawType], [402, "invalid_request_error"]);
      assert.match(error.message, /generally unsafe/);
    },

    async "a detached method stays detached"(pinned) {
      const { stripe } = await opened(pinned);
      const customer = await stripe.customers.create({ name: "Jenny Rosen" });
      const card = await stripe.paymentMethods.attach("pm_card_visa", { customer: customer.id });
      await stripe.paymentMethods.detach(card.id);
      for (const call of [
        () => stripe.paymentMethods.detach(card.id),
        () => stripe.paymentMethods.attach(card.id, { customer: customer.id }),
      ]) {
        const error = await refused(call());
        assert.deepEqual([error.statusCode, error.code], [400, undefined]);
      }
    },

    async "setup attempts are listed"(pinned) {
      const { stripe } = await opened(pinned);
      const intent = await stripe.setupIntents.create({ ...kinds(pinned, "card") });
      const confirm = (method) =>
        stripe.setupIntents.confirm(intent.id, { payment_method: method, return_url: "https://example.com/back" });
      assert.equal((await refused(confirm("pm_card_chargeDeclined"))).code, "card_declined");
      await confirm("pm_card_visa");
      const attempts = await stripe.setupAttempts.list({ setup_intent: intent.id });
      assert.deepEqual(attempts.data.map((one) => one.status), ["succeeded", "failed"]);
      const done = await stripe.setupIntents.retrieve(intent.id, { expand: ["latest_attempt"] });
      assert.equal(done.latest_attempt.id, attempts.data[0].id);
    },

    async "one call creates a bank debit and its mandate"(pinned) {
      const { stripe } = await opened(pinned);
      const debit = {
        amount: 4900,
        currency: "eur",
        ...kinds(pinned, "sepa_debit"),
        payment_method_data: {
          type: "sepa_debit",
          sepa_debit: { iban: "DE89370400440532013000" },
          billing_details: { name: "Jenny Rosen", email: "jenny@example.com" },
        },
        confirm: true,
        return_url: "https://example.com/back",
      };
      const without = await refused(stripe.paymentIntents.create(debit));
      assert.equal(without.payment_intent.object, "payment_intent");
      const taken = await stripe.paymentIntents.create({ ...debit, mandate_data: ACCEPTED });
      assert.equal(taken.status, "processing");
      await control("settle", { payment_intent: taken.id });
      const paid = await stripe.paymentIntents.retrieve(taken.id, { expand: ["latest_charge"] });
      const mandate = paid.latest_charge.payment_method_details.sepa_debit.mandate;
      assert.equal((await stripe.mandates.retrieve(mandate)).payment_method, paid.payment_method);
    },

    async "an authorization is captured in part and the rest released"(pinned) {
      const { stripe } = await opened(pinned);
      const hold = () =>
        stripe.paymentIntents.create({
          amount: 4900,
          currency: "eur",
          ...kinds(pinned, "card"),
          payment_method: "pm_card_visa",
          capture_method: "manual",
          confirm: true,
          return_url: "https://example.com/back",
        });
      const held = await hold();
      assert.deepEqual([held.status, held.amount_capturable], ["requires_capture", 4900]);
      assert.equal((await refused(stripe.refunds.create({ payment_intent: held.id }))).statusCode, 400);
      const part = await stripe.paymentIntents.capture(held.id, { amount_to_capture: 4400 });
      assert.deepEqual([part.status, part.amount_received, part.amount_capturable], ["succeeded", 4400, 0]);
      const released = await stripe.paymentIntents.cancel((await hold()).id);
      assert.deepEqual([released.status, released.amount_received], ["canceled", 0]);
    },

    async "a payment session lists its line items and shows its text"(pinned) {
      const { stripe } = await opened(pinned);
      const product = await stripe.products.create({ name: "T-shirt" });
      const price = await stripe.prices.create({ product: product.id, unit_amount: 1500, currency: "eur" });
      const session = await stripe.checkout.sessions.create({
        mode: "payment",
        success_url: "https://example.com/done",
        line_items: [
          { price: price.id, quantity: 2 },
          { price_data: { currency: "eur", unit_amount: 250, product_data: { name: "Postage" } }, quantity: 1 },
        ],
        custom_text: { submit: { message: "You agree to monthly invoices." } },
      });
      assert.equal(session.amount_total, 3250);
      assert.equal(session.custom_text.submit.message, "You agree to monthly invoices.");
      const items = await stripe.checkout.sessions.listLineItems(session.id, { limit: 1 }).autoPagingToArray({ limit: 9 });
      assert.deepEqual(items.map((item) => [item.description, item.amount_total]), [["T-shirt", 3000], ["Postage", 250]]);
      const shown = await stripe.checkout.sessions.retrieve(session.id, { expand: ["line_items.data.price.product"] });
      assert.equal(shown.line_items.data[0].price.product.name, "T-shirt");
    },

    async "a replayed response names the first request"(pinned) {
      const { stripe } = await opened(pinned);
      const create = () => stripe.customers.create({ name: "Jenny" }, { idempotencyKey: "key-1" });
      const headers = async () => (await create()).lastResponse.headers;
      const [first, again] = [await headers(), await headers()];
      assert.equal(first["original-request"], first["request-id"]);
      assert.equal(again["original-request"], first["request-id"]);
      assert.deepEqual([first["idempotent-replayed"], again["idempotent-replayed"]], [undefined, "true"]);
    },

    async "a dispute is closed"(pinned) {
      const { stripe } = await opened(pinned);
      const paid = await stripe.paymentIntents.create({
        amount: 4900,
        currency: "eur",
        ...kinds(pinned, "card"),
        payment_method: "pm_card_createDispute",
        confirm: true,
        return_url: "https://example.com/back",
      });
      const [dispute] = (await stripe.disputes.list({ payment_intent: paid.id })).data;
      assert.equal((await stripe.disputes.close(dispute.id)).status, "lost");
      assert.equal((await refused(stripe.disputes.close(dispute.id))).statusCode, 400);
    },

    async "a resent webhook has a new signature"(pinned) {
      const { stripe } = await opened(pinned);
      const listener = await listen(1);
      try {
        const { secret } = await stripe.webhookEndpoints.create({ url: listener.url, enabled_events: ["*"] });
        await stripe.customers.create({ name: "Jenny" });
        const times = [];
        const { event } = await listener.next(stripe, secret, (_, post) => times.push(/t=(\d+)/.exec(post.signature)[1]) === 2);
        assert.equal(event.type, "customer.created");
        assert.ok(Number(times[1]) > Number(times[0]), `signed at ${times}`);
      } finally {
        listener.close();
      }
    },
  };

  return Object.entries(cases).flatMap(([name, run]) => [
    { name: `${name} (${DAHLIA})`, run: () => run(true) },
    { name: `${name} (the SDK's own version)`, run: () => run(false) },
  ]);
};
