//! P10: no tenant sees or touches another's rows, even if a query forgets its WHERE.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

use std::collections::BTreeMap;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::support::database;
use crate::support::sql::superuser;

/// The column that holds the tenant.
fn tenant_column(table: &str) -> &'static str {
    if table == "organizations" { "id" } else { "organization_id" }
}

/// All tables with rows of tenants, each with whether it is a partition.
async fn tenant_tables(client: &Client) -> Vec<(String, bool)> {
    let rows = client
        .query(
            "SELECT c.relname::text, c.relispartition FROM pg_class AS c JOIN information_schema.columns AS i \
                 ON i.table_name = c.relname AND i.table_schema = 'public' \
                 AND i.column_name = CASE c.relname WHEN 'organizations' THEN 'id' ELSE 'organization_id' END \
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1",
            &[],
        )
        .await
        .expect("the catalogue can be read");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Tables without rows of tenants: rate limits of Stripe accounts, which organizations may share; timers; and what
/// processes check at startup.
const SHARED_TABLES: [&str; 5] = ["stripe_budgets", "timers", "schema_minimum", "encryption_keys", "installation"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_tenants_cannot_access_shared_tables() {
    let client = superuser(&database().await).await;
    for table in SHARED_TABLES {
        for privilege in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
            let row =
                client.query_one("SELECT has_table_privilege('paybridge_app', $1, $2)", &[&table, &privilege]).await;
            assert!(!row.unwrap().get::<_, bool>(0), "paybridge_app may {privilege} {table}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_every_table_of_a_tenant_forces_row_level_security() {
    let client = superuser(&database().await).await;
    client.execute("SELECT ensure_delivery_partitions('2026-01-01', '2026-01-02')", &[]).await.unwrap();
    let tables = tenant_tables(&client).await;
    assert!(tables.len() >= 19 + 3, "{tables:?}");
    assert!(tables.iter().any(|(name, is_partition)| name == "deliveries_20260101" && *is_partition));
    let others = client
        .query(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')",
            &[],
        )
        .await
        .unwrap();
    for row in others {
        let name: String = row.get(0);
        let is_shared = SHARED_TABLES.contains(&name.as_str()) || name == "__diesel_schema_migrations";
        let is_known = tables.iter().any(|(table, _)| *table == name) || is_shared;
        assert!(is_known, "{name} has no tenant column and is not a known shared table");
    }
    for (table, is_partition) in tables {
        let row = client
            .query_one(
                "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = to_regclass($1)",
                &[&table],
            )
            .await
            .unwrap();
        assert_eq!((row.get(0), row.get(1)), (true, true), "row level security of {table}");
        let policies: BTreeMap<String, String> = client
            .query("SELECT array_to_string(roles, ','), qual FROM pg_policies WHERE tablename = $1", &[&table])
            .await
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        if is_partition {
            assert!(policies.is_empty(), "rows of {table} are visible through its parent only: {policies:?}");
            continue;
        }
        let app = policies.get("paybridge_app").unwrap_or_else(|| panic!("{table} has no policy for paybridge_app"));
        let tenant = "NULLIF(current_setting('paybridge.organization_id'::text, true), ''::text))::uuid";
        assert!(app.contains(&format!("{} = ", tenant_column(&table))) && app.contains(tenant), "{table}: {app}");
        assert_eq!(
            policies.get("paybridge_owner").map(String::as_str),
            Some("true"),
            "{table}: the owner's backfills see all rows"
        );
        assert_eq!(policies.len(), 3, "{table}: policies for app, owner and system only: {policies:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_no_role_bypasses_row_level_security() {
    let client = superuser(&database().await).await;
    let roles = client
        .query(
            "SELECT rolname::text, rolsuper, rolbypassrls, rolcanlogin FROM pg_roles WHERE rolname LIKE 'paybridge%'",
            &[],
        )
        .await
        .unwrap();
    let mut names = Vec::new();
    for role in roles {
        let name: String = role.get(0);
        assert!(!role.get::<_, bool>(1), "{name} is a superuser");
        assert!(!role.get::<_, bool>(2), "{name} bypasses row level security");
        assert_eq!(role.get::<_, bool>(3), name == "paybridge", "only `paybridge` can log in: {name}");
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["paybridge", "paybridge_app", "paybridge_owner", "paybridge_system"]);
    let owners = client
        .query(
            "SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class \
             WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')",
            &[],
        )
        .await
        .unwrap();
    let owners: Vec<String> = owners.iter().map(|row| row.get(0)).collect();
    assert_eq!(owners, ["paybridge_owner"], "a table's owner could turn row level security off");
}

/// A random value for a NOT NULL column.
fn value(column: &str, kind: &str) -> String {
    match (column, kind) {
        ("link_state", _) => "'none'".to_owned(),
        ("currency", _) => "'EUR'".to_owned(),
        ("state", _) => "STATE".to_owned(),
        ("kind", _) => "'link'".to_owned(),
        ("created", _) => "'2026-01-01 12:00+00'".to_owned(),
        (_, "uuid") => format!("'{}'", Uuid::from_u128(getrandom::u64().unwrap().into())),
        (_, "text") => format!("'{}'", getrandom::u64().unwrap()),
        (_, "_text") => "'{card}'".to_owned(),
        (_, "timestamptz") => "now()".to_owned(),
        (_, "bool") => "false".to_owned(),
        (_, "int4" | "int8") => "1".to_owned(),
        (_, "jsonb") => "'{}'".to_owned(),
        (_, "bytea") => "'\\x00'".to_owned(),
        _ => panic!("no value is defined for the column {column} of type {kind}"),
    }
}

/// A statement that inserts a row of `organization` into `table`.
async fn insertion(client: &Client, table: &str, organization: Uuid) -> String {
    let columns = client
        .query(
            "SELECT column_name::text, udt_name::text FROM information_schema.columns \
             WHERE table_schema = 'public' AND table_name = $1 AND is_nullable = 'NO'",
            &[&table],
        )
        .await
        .unwrap();
    let state = match table {
        "integrations" => "'active'",
        "payments" => "'pending'",
        "deliveries" | "deliveries_default" | "deliveries_20260101" => "'received'",
        _ => "'open'",
    };
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for column in columns {
        let (name, kind): (String, String) = (column.get(0), column.get(1));
        let is_key = name == tenant_column(table);
        values.push(if is_key { format!("'{organization}'") } else { value(&name, &kind).replace("STATE", state) });
        names.push(name);
    }
    format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), values.join(", "))
}

/// Runs a statement as paybridge_app for `organization`, or without a tenant, and rolls it back.
async fn as_app(client: &Client, organization: Option<Uuid>, sql: &str) -> Result<u64, tokio_postgres::Error> {
    let tenant = organization.map(|id| id.to_string()).unwrap_or_default();
    let set = format!("BEGIN; SET LOCAL ROLE paybridge_app; SET LOCAL paybridge.organization_id = '{tenant}'");
    client.batch_execute(&set).await?;
    let outcome = client.execute(sql, &[]).await;
    client.batch_execute("ROLLBACK").await?;
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_a_query_without_where_affects_the_tenants_own_rows_only() {
    let client = superuser(&database().await).await;
    client.execute("SELECT ensure_delivery_partitions('2026-01-01', '2026-01-01')", &[]).await.unwrap();
    // Foreign keys are off, and paybridge_app may do everything that row level security does not forbid.
    client.batch_execute("SET session_replication_role = replica").await.unwrap();
    client.batch_execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO paybridge_app").await.unwrap();
    let (ours, theirs) = (Uuid::from_u128(0xa), Uuid::from_u128(0xb));
    let tables = tenant_tables(&client).await;
    for (table, is_partition) in tables.iter().filter(|(_, is_partition)| !is_partition) {
        assert!(!is_partition);
        for organization in [ours, theirs] {
            let sql = insertion(&client, table, organization).await;
            client.execute(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
    }
    for (table, is_partition) in &tables {
        let key = tenant_column(table);
        // By its own name a partition shows no rows.
        let seen = u64::from(!is_partition);
        let select = format!("SELECT * FROM {table}");
        let update = format!("UPDATE {table} SET {key} = {key}");
        let delete = format!("DELETE FROM {table}");
        for sql in [&select, &update, &delete] {
            assert_eq!(as_app(&client, Some(ours), sql).await.unwrap(), seen, "{sql}");
            assert_eq!(as_app(&client, None, sql).await.unwrap(), 0, "without a tenant: {sql}");
        }
        let row = client.query(&format!("SELECT {key} FROM {table}"), &[]).await.unwrap();
        assert!(*is_partition || row.len() == 2, "the superuser sees both rows of {table}");
        let foreign_insert = insertion(&client, table, theirs).await;
        let foreign_update = format!("UPDATE {table} SET {key} = '{theirs}'");
        for sql in [&foreign_insert, &foreign_update] {
            match as_app(&client, Some(ours), sql).await {
                Err(error) => assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{sql}: {error:?}"),
                Ok(touched) => assert!(*is_partition && touched == 0, "{sql} succeeded"),
            }
        }
    }
}

/// The columns and types of each table in `schema.rs`.
fn diesel_tables() -> BTreeMap<String, Vec<(String, String)>> {
    let source = include_str!("../../src/store/schema.rs");
    let mut tables = BTreeMap::new();
    for block in source.split("table! {").skip(1) {
        let mut lines = block.lines().map(str::trim).filter(|line| !line.is_empty());
        let name = lines.next().and_then(|line| line.split_once(" (")).expect("a table has a name").0.to_owned();
        let columns = lines.map_while(|line| line.strip_suffix(',')?.split_once(" -> "));
        tables.insert(name, columns.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect());
    }
    tables
}

fn diesel_type(udt_name: &str, is_nullable: bool) -> String {
    let kind = match udt_name {
        "uuid" => "Uuid",
        "text" => "Text",
        "_text" => "Array<Text>",
        "timestamptz" => "Timestamptz",
        "bool" => "Bool",
        "int4" => "Integer",
        "int8" => "BigInt",
        "jsonb" => "Jsonb",
        "bytea" => "Bytea",
        "bpchar" => "Bpchar",
        other => other,
    };
    if is_nullable { format!("Nullable<{kind}>") } else { kind.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_rs_matches_the_database() {
    let client = superuser(&database().await).await;
    let expected = diesel_tables();
    assert_eq!(expected.len(), 18, "{:?}", expected.keys());
    for (table, columns) in expected {
        let rows = client
            .query(
                "SELECT column_name::text, udt_name::text, is_nullable = 'YES' FROM information_schema.columns \
                 WHERE table_schema = 'public' AND table_name = $1 ORDER BY ordinal_position",
                &[&table],
            )
            .await
            .unwrap();
        let actual: Vec<(String, String)> =
            rows.iter().map(|row| (row.get(0), diesel_type(row.get(1), row.get(2)))).collect();
        assert_eq!(columns, actual, "{table}");
    }
}
