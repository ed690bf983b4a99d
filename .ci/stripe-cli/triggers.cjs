// Runs Stripe's own CLI, which we did not write, to show that the sandbox accepts what Stripe accepts: `stripe trigger`
// sends the calls that cause an event at Stripe, and the sandbox must emit that event. PAYBRIDGE_SANDBOX_URL is the
// sandbox's URL, PAYBRIDGE_STRIPE_CLI the path of the CLI.
"use strict";

const assert = require("node:assert/strict");
const { spawnSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const base = process.env.PAYBRIDGE_SANDBOX_URL ?? assert.fail("PAYBRIDGE_SANDBOX_URL names no sandbox");
const cli = process.env.PAYBRIDGE_STRIPE_CLI ?? assert.fail("PAYBRIDGE_STRIPE_CLI names no CLI");

/** Types without a trigger in the CLI. If one of them has a trigger, the run fails. */
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

/** The types that webhook endpoints are registered for, read from their table in the source. */
function handled() {
  const source = fs.readFileSync(path.join(__dirname, "../../src/stripe/signals.rs"), "utf8");
  const table = source.match(/^const HANDLED:[^]*?^\];/m) ?? assert.fail("src/stripe/signals.rs has no table HANDLED");
  const types = [...table[0].matchAll(/^ {4}\("([a-z_.]+)"/gm)].map((match) => match[1]);
  assert.ok(types.length > 20, `the table HANDLED has only ${types.length} types`);
  return types;
}

async function call(where, key, body) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch(new URL(where, base), { method: body ? "POST" : "GET", headers, body });
  const value = await response.json();
  assert.equal(response.status, 200, `${where}: ${JSON.stringify(value)}`);
  return value;
}

/** Runs a trigger in a new account; returns why it failed, or nothing. */
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
      // The CLI checks for updates if a trigger fails. It must only reach the sandbox.
      HTTPS_PROXY: "http://127.0.0.1:9",
    },
  });
  const said = `${played.stdout}\n${played.stderr}`.trim();
  if (/not supported by Stripe CLI/.test(said)) return { none: true };
  if (played.error || played.status !== 0 || /Trigger failed|Request failed/.test(said)) {
    return { why: played.error?.message ?? said };
  }
  // Banks respond to debits days later.
  await call("/_sandbox/settle", null, "{}");
  const events = await call(`/v1/events?type=${type}`, key);
  return { why: events.data.length > 0 ? undefined : "its calls succeed but cause no such event" };
}

(async () => {
  const { version } = require(path.join(path.dirname(cli), "../@stripe/cli/package.json"));
  console.log(`Stripe's CLI ${version} against ${base}`);
  const home = fs.mkdtempSync(path.join(os.tmpdir(), "stripe-cli-"));
  const count = { passes: 0, fails: 0, "no trigger": 0 };
  let failed = false;
  try {
    for (const type of handled()) {
      const { none, why } = await play(type, home);
      const result = none ? "no trigger" : why ? "fails" : "passes";
      count[result] += 1;
      const unexpected = result !== (NO_TRIGGER.has(type) ? "no trigger" : "passes");
      console.log(`  ${unexpected ? "FAIL" : "ok  "}  ${result.padEnd(10)} ${type}`);
      if (why) console.log(`        ${why.replaceAll("\n", "\n        ")}`);
      failed ||= unexpected;
    }
  } finally {
    fs.rmSync(home, { recursive: true, force: true });
  }
  console.log(`${count.passes} triggers passed, ${count.fails} failed, and ${count["no trigger"]} types have none.`);
  process.exitCode = failed ? 1 : 0;
})();
