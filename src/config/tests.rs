use secrecy::ExposeSecret;

use super::*;

const KEY: &str = "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_KEY: &str = "k0:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHhA=";

/// Parses a command line with an empty environment.
fn read(line: &[&str]) -> Result<Settings, ConfigError> {
    let line = ["paybridge"].iter().chain(line).map(OsString::from);
    load_from(without_environment(arguments::Cli::command()), line)
}

fn without_environment(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| arg.env(None::<&'static str>));
    command.mut_subcommands(without_environment)
}

fn serve(more: &[&str]) -> Result<Serve, String> {
    let mut line = vec!["serve", "--database-url=postgresql://u:hunter2@db/pay", "--encryption-keys", KEY];
    line.push("--default-success-url=https://shop.example/done");
    line.extend(more);
    match read(&line) {
        Ok(Settings { task: Task::Serve(serve), .. }) => Ok(*serve),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.text),
    }
}

#[test]
fn serve_requires_three_settings() {
    let serve = serve(&[]).unwrap();
    let grpc = serve.grpc.unwrap();
    assert_eq!(grpc.listen.to_string(), "0.0.0.0:50051");
    assert_eq!(serve.http_listen.to_string(), "0.0.0.0:8080");
    assert_eq!(serve.stripe.base_url.as_str(), "https://api.stripe.com");
    assert_eq!(serve.retention.deliveries, time::Duration::days(35));
    assert_eq!(serve.database.direct_url.expose_secret(), serve.database.url.expose_secret());
    assert!(grpc.tls.is_none() && serve.public_webhook_url.is_none());
}

#[test]
fn all_errors_are_reported_at_once_with_exit_code_64() {
    let line = ["serve", "--log-format=xml", "--log-filter=a=b=c", "--grpc-listen=here", "--database-pool-size=1"];
    let more = ["--delivery-retention-days=34", "--stripe-base-url=http://api.stripe.com", "--grpc-tls-cert-file=/x"];
    let error = read(&[&line[..], &more[..]].concat()).unwrap_err();
    assert_eq!(error.exit_code, 64);
    let expected = [
        "10 invalid settings",
        "--log-format (PAYBRIDGE_LOG_FORMAT): `xml`",
        "--log-filter (PAYBRIDGE_LOG_FILTER)",
        "--database-url (DATABASE_URL): is missing",
        "--database-pool-size (PAYBRIDGE_DATABASE_POOL_SIZE): `1` is not a whole number from 2 to 500",
        "--grpc-listen (PAYBRIDGE_GRPC_LISTEN): `here`",
        "--grpc-tls-key-file (PAYBRIDGE_GRPC_TLS_KEY_FILE): is missing",
        "--stripe-base-url (PAYBRIDGE_STRIPE_BASE_URL): `http://api.stripe.com` must begin with https://",
        "--encryption-keys (PAYBRIDGE_ENCRYPTION_KEYS): is missing",
        "--default-success-url (PAYBRIDGE_DEFAULT_SUCCESS_URL): is missing",
        "--delivery-retention-days (PAYBRIDGE_DELIVERY_RETENTION_DAYS): `34`",
    ];
    for message in expected {
        assert!(error.text.contains(message), "`{message}` is not in:\n{}", error.text);
    }
}

/// P9.
#[test]
fn p9_secrets_show_neither_in_messages_nor_in_debug() {
    let shown = format!("{:?}", serve(&[]).unwrap());
    assert!(!shown.contains("hunter2") && !shown.contains("AAECAw"), "{shown}");
    let bad = ["--database-url=postgresql://u:hunter2@db:port/pay", "--encryption-keys=k1:hunter2,hunter2:x"];
    let error = read(&["serve", bad[0], bad[1], "--direct-database-url=hunter2"]).unwrap_err();
    assert!(error.text.contains("--direct-database-url (PAYBRIDGE_DIRECT_DATABASE_URL)"), "{}", error.text);
    assert!(!error.text.contains("hunter2"), "{}", error.text);
    let unwanted = serve(&["--public-webhook-url=https://me:hunter2@pay.example.com"]).unwrap_err();
    assert!(unwanted.contains("must not contain a user") && !unwanted.contains("hunter2"), "{unwanted}");
}

#[test]
fn the_first_key_seals_and_all_keys_open() {
    let both = format!("{KEY},{OTHER_KEY}");
    let keys = check::encryption_keys(&both.into()).unwrap();
    assert_eq!(keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>(), ["k1", "k0"]);
    assert_eq!(keys[0].key.expose_secret()[..3], [0, 1, 2]);
}

#[test]
fn bad_keys_are_refused_each_with_its_reason() {
    let twice = format!("{KEY}\n{KEY}");
    let zeros = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let cases = [("", "no key"), ("k1", "a colon"), ("k 1:x", "its id"), ("k1:AAEC", "32 random bytes")];
    for (text, reason) in cases.into_iter().chain([(twice.as_str(), "used twice"), (zeros, "one byte repeated")]) {
        let message = check::encryption_keys(&text.into()).unwrap_err();
        assert!(message.contains(reason), "{text:?}: {message}");
    }
}

#[test]
fn keys_and_certificates_come_from_files_too() {
    let folder = std::env::temp_dir().join(format!("paybridge-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name).display().to_string()
    };
    let keys = file("keys", &format!("{KEY}\n{OTHER_KEY}\n"));
    let cert = file("cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let key = file("key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let line = ["serve", "--database-url=host=/run/pg user=u", "--default-success-url=https://shop.example/"];
    let files = ["--encryption-keys-file", &keys, "--grpc-tls-cert-file", &cert, "--grpc-tls-key-file", &key];
    let Task::Serve(read_from_files) = read(&[&line[..], &files[..]].concat()).unwrap().task else { panic!() };
    assert_eq!(read_from_files.encryption_keys.len(), 2);
    assert!(read_from_files.grpc.unwrap().tls.unwrap().certificate.contains("CERTIFICATE"));
    let swapped = serve(&["--grpc-tls-cert-file", &key, "--grpc-tls-key-file", &cert]).unwrap_err();
    assert!(swapped.contains("2 invalid settings") && swapped.contains("no PEM block"), "{swapped}");
    let both = serve(&["--encryption-keys-file", &keys]).unwrap_err();
    assert!(both.contains("only one of them"), "{both}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn web_addresses_are_https_or_this_machine() {
    for good in ["https://pay.example.com/", "https://pay.example.com/base", "http://127.0.0.1:8080", "http://[::1]:1"]
    {
        let url = BaseUrl::parse(good).unwrap();
        assert_eq!(url.as_str(), good.trim_end_matches('/'));
        assert_eq!(url.is_loopback(), good.starts_with("http:"));
    }
    for bad in
        ["http://pay.example.com", "ftp://x", "pay.example.com", "", "https://x/?a=b", "http://localhost.evil.com"]
    {
        assert!(BaseUrl::parse(bad).is_err(), "{bad}");
    }
    let with_placeholder = "https://shop.example/done?session={CHECKOUT_SESSION_ID}";
    assert_eq!(check::page_url(Some(with_placeholder.to_owned())).unwrap(), with_placeholder);
}

#[test]
fn a_blank_optional_setting_is_absent() {
    let blank =
        serve(&["--public-webhook-url=", "--otlp-endpoint=", "--grpc-tls-cert-file= ", "--direct-database-url="]);
    assert!(blank.unwrap().public_webhook_url.is_none());
}

#[test]
fn risky_settings_are_warned_about() {
    let safe = serve(&["--grpc-listen=127.0.0.1:1", "--public-webhook-url=https://pay.example.com"]).unwrap();
    assert!(safe.warnings().is_empty(), "{:?}", safe.warnings());
    let risky = ["--stripe-base-url=http://localhost:1", "--worker-concurrency=500", "--database-url=host=x"];
    let line = [
        "serve",
        "--encryption-keys",
        KEY,
        "--default-success-url=https://shop.example/",
        "--shutdown-grace-seconds=5",
    ];
    let Task::Serve(serve) = read(&[&line[..], &risky[..]].concat()).unwrap().task else { panic!() };
    assert_eq!(serve.warnings().len(), 5, "{:?}", serve.warnings());
}

#[test]
fn organizations_and_tokens_are_managed_by_id() {
    let database = "--database-url=host=/run/pg";
    let organization = "--organization=0190163d-8694-739b-aea5-966c26f8ad91";
    assert!(matches!(
        read(&["organization", "create", "Hooli", database]).unwrap().task,
        Task::CreateOrganization { name, .. } if name == "Hooli"
    ));
    assert!(matches!(
        read(&["token", "create", "--name=billing", organization, database]).unwrap().task,
        Task::CreateToken { .. }
    ));
    let error = read(&["token", "revoke", "7"]).unwrap_err();
    assert!(error.text.contains("2 invalid settings"), "{}", error.text);
    let error = read(&["token", "revoke", "pbt_secret"]).unwrap_err();
    assert!(error.text.contains("give its id") && !error.text.contains("secret"), "{}", error.text);
}

#[test]
fn a_worker_has_no_grpc_api_and_runs_jobs() {
    let line = ["worker", "--database-url=host=/run/pg", "--default-success-url=https://shop.example/done"];
    let keys = ["--encryption-keys", KEY];
    let Task::Serve(work) = read(&[&line[..], &keys[..]].concat()).unwrap().task else { panic!() };
    assert!(work.grpc.is_none() && work.worker_concurrency == 16);
    let idle = read(&[&line[..], &keys[..], &["--worker-concurrency=0"]].concat()).unwrap_err();
    assert!(idle.text.contains("`0` is not a whole number from 1 to 1000"), "{}", idle.text);
    assert_eq!(serve(&["--worker-concurrency=0"]).unwrap().worker_concurrency, 0, "requests only");
}

#[test]
fn a_job_is_retried_by_id_or_all_that_are_parked() {
    let (database, job) = ("--database-url=host=/run/pg", "0190163d-8694-739b-aea5-966c26f8ad91");
    let retried = |line: &[&str]| match read(&[&["jobs", "retry", database], line].concat()).map(|read| read.task) {
        Ok(Task::RetryJobs { job, .. }) => Ok(job),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.text),
    };
    assert_eq!(retried(&[job]).unwrap(), job.parse().ok());
    assert_eq!(retried(&["--all-parked"]).unwrap(), None);
    for wrong in [&[][..], &[job, "--all-parked"], &["7"]] {
        retried(wrong).unwrap_err();
    }
    assert!(matches!(
        read(&["jobs", "list", "--parked", database]).unwrap().task,
        Task::ListJobs { organization: None, only_parked: true, .. }
    ));
}

#[test]
fn printing_the_roles_needs_no_database() {
    let printed = read(&["migrate", "--print-roles", "--for", "o'hara"]).unwrap().task;
    assert!(matches!(printed, Task::PrintRoles { grantee } if grantee == "o'hara"));
    for wrong in [&["--print-roles"][..], &["--for=me"], &["--print-roles", "--for="], &["--print-roles", "--for=a\n"]]
    {
        read(&[&["migrate"], wrong].concat()).unwrap_err();
    }
    let too_long = format!("--for={}", "x".repeat(64));
    assert!(read(&["migrate", "--print-roles", &too_long]).unwrap_err().text.contains("--for: "));
    let migrate = read(&["migrate", "--database-url=host=x"]).unwrap().task;
    assert!(matches!(migrate, Task::Migrate { installation, .. } if installation == "paybridge"));
    assert!(read(&["migrate"]).unwrap_err().text.contains("--database-url (DATABASE_URL): is missing"));
}

#[test]
fn adopting_a_copy_needs_a_name_for_it() {
    let named = read(&["adopt", "--database-url=host=x", "--installation=staging"]).unwrap().task;
    assert!(matches!(named, Task::Adopt { installation, .. } if installation == "staging"));
    let unnamed = read(&["adopt"]).unwrap_err().text;
    assert!(unnamed.contains("2 invalid settings") && unnamed.contains("--installation"), "{unnamed}");
    read(&["adopt", "--database-url=host=x", "--installation=Staging"]).unwrap_err();
}

#[test]
fn help_is_not_an_error_and_an_unknown_flag_is() {
    let line = ["paybridge", "serve", "--help"].map(OsString::from);
    let help = load_from(arguments::Cli::command(), line).unwrap_err();
    assert_eq!(help.exit_code, 0);
    assert!(help.text.contains("PAYBRIDGE_ENCRYPTION_KEYS") && help.text.contains("openssl rand"), "{}", help.text);
    assert_eq!(read(&["serve", "--no-such-flag"]).unwrap_err().exit_code, 64);
    assert_eq!(read(&[]).unwrap_err().exit_code, 64);
}

#[test]
fn every_setting_is_a_flag_and_a_variable_of_the_same_name() {
    fn check_command(command: &clap::Command, seen: &mut usize) {
        let has_no_variables =
            ["migrate", "organization", "create", "list", "revoke", "retry"].contains(&command.get_name());
        for arg in command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
            if let Some(variable) = arg.get_env() {
                assert_eq!(variable.to_str().unwrap(), check::variable(arg.get_long().unwrap()));
                *seen += 1;
            } else {
                assert!(has_no_variables, "{} has no variable", arg.get_id());
            }
        }
        command.get_subcommands().for_each(|inner| check_command(inner, seen));
    }
    let mut seen = 0;
    check_command(&arguments::Cli::command(), &mut seen);
    assert!(seen > 20);
}

#[test]
fn the_chart_knows_no_setting_that_serve_does_not_know() {
    let schema = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/helm/paybridge/values.schema.json"));
    let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
    let keys = schema["properties"]["config"]["properties"].as_object().unwrap().keys();
    let cli = arguments::Cli::command();
    let serve = cli.find_subcommand("serve").unwrap();
    for key in keys {
        let flag: String = key.chars().flat_map(|c| if c.is_uppercase() { vec!['-', c] } else { vec![c] }).collect();
        let flag = flag.to_lowercase();
        let known = |arg: &clap::Arg| arg.get_long() == Some(&flag) && arg.get_env().is_some();
        assert!(serve.get_arguments().chain(cli.get_arguments()).any(known), "serve has no --{flag}");
    }
}

#[cfg(feature = "dev")]
#[test]
fn a_fast_clock_and_the_periods_of_chaos_are_read() {
    let clock = serve(&["--clock=1790000000,60,7200"]).unwrap().clock.unwrap();
    assert_eq!((clock.anchor.unix_timestamp(), clock.speed), (1_790_000_000, 60));
    assert_eq!(clock.ahead, time::Duration::hours(2));
    assert!(serve(&[]).unwrap().clock.is_none());
    for bad in ["1,60", "1,0,0", "1,60,0,0", "now,60,0", "1,60,-5"] {
        assert!(serve(&["--clock", bad]).unwrap_err().contains("ANCHOR,SPEED,AHEAD"), "{bad}");
    }
    let line = ["chaos", "--payments=7", "--faults=25%", "--kill-every=500ms", "--seed=3", "--minutes=2"];
    let Ok(Settings { task: Task::Chaos(chaos), .. }) = read(&line) else { panic!("it is read") };
    assert!(chaos.restore_every.is_zero(), "off by default");
    assert_eq!((chaos.payments, chaos.faults, chaos.seed), (7, 25, Some(3)));
    assert_eq!((chaos.kill_every.as_millis(), chaos.time_limit.as_secs()), (500, 120));
    let error = read(&["chaos", "--faults=90%", "--kill-every=soon", "--restore-every=later"]).unwrap_err();
    assert!(error.text.contains("3 invalid settings"), "{}", error.text);
}

#[test]
fn variables_that_name_no_setting_are_reported() {
    let names = [
        "PAYBRIDGE_ENCRYPTION_KEYS",
        "PAYBRIDGE_STRIPE_TIMEOUT",
        "PAYBRIDGE_LOG_FORMAT",
        "PAYBRIDGE_HTTP_LISTEN",
        // Kubernetes sets these for a Service of that name.
        "PAYBRIDGE_SERVICE_HOST",
        "PAYBRIDGE_PORT",
        "PAYBRIDGE_PORT_50051_TCP_ADDR",
        "DATABASE_URL",
        "PATH",
    ];
    assert_eq!(unknown_variables(names.map(OsString::from)), ["PAYBRIDGE_STRIPE_TIMEOUT"]);
}
