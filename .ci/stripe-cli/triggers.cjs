// Stripe's own CLI, which we did not write, shows that the sandbox takes what Stripe takes: `stripe trigger` sends the calls
// that bring an event about at Stripe, and the sandbox must emit that event. The sandbox is the one that
// PAYBRIDGE_SANDBOX_URL names, the CLI the one that PAYBRIDGE_STRIPE_CLI names.
"use strict";

const assert = require("node:assert/strict");
const { spawnSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const base = process.env.PAYBRIDGE_SANDBOX_URL ?? assert.fail("PAYBRIDGE_SANDBOX_URL names no sandbox");
const cli = process.env.PAYBRIDGE_STRIPE_CLI ?? assert.fail("PAYBRIDGE_STRIPE_CLI names no CLI");

/** Types that the CLI has no trigger for. Each is checked: one that has got a trigger fails the run. */
const NO_TRIGGER = new Set([
  "charge.dispute.funds_reinstated",
  "charge.dispute.funds_withdrawn",
  "charge.pending",
  "mandate.updated",
  "payment_method.automatically_updated",
  "refund.created",
  "refund.failed",
  "refund.updated",
]);

/** The types that webhook endpoints are registered for: the one table of them is in the source. */
function handled() {
  const source = fs.readFileSync(path.join(__dirname, "../../src/stripe/signals.rs"), "utf8");
  const table = source.match(/^const HANDLED:[^]*?^\];/m) ?? assert.fail("src/stripe/signals.rs has no table HANDLED");
  const types = [...table[0].matchAll(/^ {4}\("([a-z_.]+)"/gm)].map((match) => match[1]);
  assert.ok(types.length > 20, `the table HANDLED has only ${types.length} types`);
  return types;
}

async function call(where, key, body) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(new URL(where, base), { method: body ? "POST" : "GET", headers, body });
  const value = await answer.json();
  assert.equal(answer.status, 200, `${where}: ${JSON.stringify(value)}`);
  return value;
}

/** Plays a trigger in an account of its own; gives why it does not play, or nothing if it does. */
async function play(type, home) {
  const { key } = await call("/_sandbox/accounts", null, "{}");
  const played = spawnSync(cli, ["trigger", type, "--api-base", base, "--api-key", key], {
    encoding: "utf8",
    timeout: 60_000,
    env: {
      PATH: process.env.PATH,
      HOME: home,
      XDG_CONFIG_HOME: home,
      STRIPE_CLI_TELEMETRY_OPTOUT: "1",
      // It looks for newer versions of itself where a trigger fails: nothing but the sandbox is to be reached.
      HTTPS_PROXY: "http://127.0.0.1:9",
    },
  });
  const said = `${played.stdout}\n${played.stderr}`.trim();
  if (/not supported by Stripe CLI/.test(said)) return { none: true };
  if (played.error || played.status !== 0 || /Trigger failed|Request failed/.test(said)) {
    return { why: played.error?.message ?? said };
  }
  // Banks answer debits days later.
  await call("/_sandbox/settle", null, "{}");
  const events = await call(`/v1/events?type=${type}`, key);
  return { why: events.data.length > 0 ? undefined : "its calls are taken, and no such event comes of them" };
}

(async () => {
  const { version } = require(path.join(path.dirname(cli), "../@stripe/cli/package.json"));
  console.log(`Stripe's CLI ${version} against ${base}`);
  const home = fs.mkdtempSync(path.join(os.tmpdir(), "stripe-cli-"));
  const count = { plays: 0, "does not play": 0, "no trigger": 0 };
  let failed = false;
  try {
    for (const type of handled()) {
      const { none, why } = await play(type, home);
      const what = none ? "no trigger" : why ? "does not play" : "plays";
      count[what] += 1;
      const wrong = what !== (NO_TRIGGER.has(type) ? "no trigger" : "plays");
      console.log(`  ${wrong ? "FAIL" : "ok  "}  ${what.padEnd(14)} ${type}`);
      if (why) console.log(`        ${why.replaceAll("\n", "\n        ")}`);
      failed ||= wrong;
    }
  } finally {
    fs.rmSync(home, { recursive: true, force: true });
  }
  console.log(`${count.plays} play, ${count["does not play"]} do not, and the CLI has no trigger for ${count["no trigger"]}.`);
  process.exitCode = failed ? 1 : 0;
})();
