//! What the server and the programs that fetch it share as child processes.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getppid};

/// Makes the kernel signal the child when the thread that starts it exits, which for a supervisor means: when this
/// process exits, even by kill -9. (SIGINT is Postgres' fast shutdown.)
pub(in crate::dev) fn end_with_parent(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have exited between the fork and the line above; then the signal would never be sent.
        if getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
    };
    #[expect(
        unsafe_code,
        reason = "runs in the child between fork and exec: two system calls, which take no lock and allocate nothing, as \
                  pre_exec requires"
    )]
    unsafe {
        command.pre_exec(before_exec);
    }
}

/// The end of a program's output, for error messages.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
