//! `ringmesh canary`: asks the admin address of a running proxy. Called by `main`. Refuses to know more than that address: what
//! a canary is and may do says the proxy.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::{Args, Subcommand};

/// What is asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell where each canary stands, and why
    Status {
        #[command(flatten)]
        at: At,
        /// Print JSON in place of the table
        #[arg(long)]
        json: bool,
    },
    /// Give the canary all requests, at once
    Promote(Which),
    /// Give the baseline all requests, at once
    Rollback(Which),
    /// Let the canary stay at its share; nothing is judged meanwhile
    Pause(Which),
    /// Let a paused canary go on
    Resume(Which),
    /// Let the canary begin anew with its first step
    Restart(Which),
}

/// Which canary, and where.
#[derive(Debug, Args)]
pub struct Which {
    /// The name of the canary
    name: String,
    #[command(flatten)]
    at: At,
}

/// Where the proxy is asked.
#[derive(Debug, Args)]
pub struct At {
    /// The admin address of the proxy
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
}

/// For the whole conversation.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read: a hundred canaries have less.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Asks, and tells what was answered; the exit code.
pub fn run(command: &Command, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let asked = match command {
        Command::Status { at, json } => {
            ask(at.admin, "GET", if *json { "/canary?format=json" } else { "/canary" })
        }
        Command::Promote(which) => which.tell("promote"),
        Command::Rollback(which) => which.tell("rollback"),
        Command::Pause(which) => which.tell("pause"),
        Command::Resume(which) => which.tell("resume"),
        Command::Restart(which) => which.tell("restart"),
    };
    let told = match asked {
        Ok((200, text)) => write!(out, "{text}").map(|()| 0),
        Ok((_, text)) => write!(err, "{text}").map(|()| 1),
        Err(error) => {
            writeln!(err, "{error}\n  help: is the proxy running, and is --admin its admin address?")
                .map(|()| 1)
        }
    };
    // Nobody reads any more.
    told.unwrap_or(1)
}

impl Which {
    fn tell(&self, order: &str) -> Result<(u16, String), String> {
        let name = &self.name;
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:".contains(&b)) {
            return Ok((404, format!("there is no canary `{name}`\n")));
        }
        ask(self.at.admin, "POST", &format!("/canary/{name}/{order}"))
    }
}

fn ask(admin: SocketAddr, method: &str, target: &str) -> Result<(u16, String), String> {
    let failed = |error: io::Error| format!("{admin} cannot be asked: {error}");
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )
    .map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let none = || format!("{admin} does not answer as a ringmesh does");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(none)?;
    let status =
        head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    Ok((status.ok_or_else(none)?, body.to_owned()))
}
