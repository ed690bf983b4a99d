//! The plans that Postgres logs with `auto_explain`.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};

use serde_json::Value;
use tokio_postgres::Client;

use super::postgres;

/// The plans in the server's log.
pub struct Plans {
    log: File,
}

impl Plans {
    /// Makes new sessions of the service log their plans, and ends the open ones.
    pub async fn enable(database: &Client, mode: &str) -> Self {
        let settings = [
            "session_preload_libraries = 'auto_explain'",
            "auto_explain.log_min_duration = 0",
            "auto_explain.log_analyze = on",
            "auto_explain.log_buffers = on",
            "auto_explain.log_timing = off",
            "auto_explain.log_nested_statements = on",
            "auto_explain.log_format = json",
            &format!("plan_cache_mode = {mode}"),
        ];
        let name: String = database.query_one("SELECT current_database()::text", &[]).await.expect("a name").get(0);
        for setting in settings {
            // For the service's sessions only, not for the test's own.
            let alter = format!("ALTER ROLE paybridge IN DATABASE {name} SET {setting}");
            database.batch_execute(&alter).await.expect("a setting");
        }
        let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        database.query(end, &[]).await.expect("they are deleted");
        let mut log = File::open(postgres().log_file()).expect("the server's log");
        log.seek(SeekFrom::End(0)).expect("its end");
        Self { log }
    }

    /// Reads the plans logged since the last call.
    pub fn read(&mut self) -> Vec<Value> {
        let mut text = Vec::new();
        self.log.read_to_end(&mut text).expect("the server's log");
        let text = String::from_utf8_lossy(&text);
        let mut plans = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if !(line.contains("LOG:  duration:") && line.ends_with("plan:")) {
                continue;
            }
            let mut plan = String::new();
            while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
                plan.push_str(line);
            }
            // The last one may still be written.
            if let Ok(plan) = serde_json::from_str(&plan) {
                plans.push(plan);
            }
        }
        plans
    }
}

/// A count of a plan node, rounded down: newer versions of Postgres report fractions, as the average of several loops.
pub fn number(node: &Value, name: &str) -> u64 {
    let text = node[name].to_string();
    text.split('.').next().and_then(|whole| whole.parse().ok()).unwrap_or_default()
}

pub fn nodes<'a>(node: &'a Value, all: &mut Vec<&'a Value>) {
    all.push(node);
    for child in node["Plans"].as_array().into_iter().flatten() {
        nodes(child, all);
    }
}

pub fn pages(node: &Value) -> u64 {
    number(node, "Shared Hit Blocks") + number(node, "Shared Read Blocks")
}

/// The query and the plan's nodes with their pages, for error messages.
pub fn describe(plan: &Value) -> String {
    let mut all = Vec::new();
    nodes(&plan["Plan"], &mut all);
    let line = |node: &&Value| {
        let name = if node["Index Name"].is_null() { &node["Relation Name"] } else { &node["Index Name"] };
        format!("\n    {} {name}: {} pages", node["Node Type"], pages(node))
    };
    format!("{}{}", plan["Query Text"], all.iter().map(line).collect::<String>())
}
