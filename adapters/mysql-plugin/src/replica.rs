//! `tokudb_backup_safe_slave`: a replica's SQL threads at rest around the cut, at a moment when they hold no temporary tables.
//!
//! A copy has no temporary tables, and a replica that goes on from one would miss those that a statement-based log had made
//! before. Threads that were not running are left alone.

use std::time::{Duration, Instant};

use crate::host::{self, Family, Server};
use crate::library::Failure;
use crate::sql::{Refusal, Session};

/// How long a thread that was told to stop may take, whatever the timeout: it finishes what it is at.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// How far a replica has come with one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channel {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) user: String,
    pub(crate) port: String,
    pub(crate) file: String,
    pub(crate) position: String,
}

/// SQL threads that were stopped, and are started again when this goes.
pub(crate) struct AtRest<'a> {
    pub(crate) session: &'a mut Session,
    server: Server,
    stopped: Vec<String>,
}

impl<'a> AtRest<'a> {
    /// Stops all SQL threads when there are no temporary tables, within `timeout`; `is_over` tells early that nobody waits.
    pub(crate) fn begin(
        server: Server,
        session: &'a mut Session,
        timeout: Duration,
        is_over: impl Fn(Duration) -> bool,
    ) -> Result<AtRest<'a>, Failure> {
        let refused = |refusal: Refusal| Failure::new(libc::EACCES, refusal.text);
        let until = Instant::now() + timeout;
        let mut rest = AtRest { session, server, stopped: Vec::new() };
        loop {
            // Stopping is no use before they are gone; whether they are is told for sure when nobody can make others.
            if open_tables() == Some(0) {
                rest.stop().map_err(refused)?;
            }
            let tables = open_tables()
                .ok_or_else(|| Failure::new(libc::ENOTSUP, "the server does not tell of temporary tables"))?;
            if tables == 0 {
                return Ok(rest);
            }
            rest.start();
            if Instant::now() >= until {
                let text = format!("its SQL thread holds temporary tables ({tables})");
                return Err(Failure::new(libc::ETIMEDOUT, text));
            }
            if is_over(PAUSE) {
                return Err(Failure::new(libc::EINTR, "it is not wanted any more"));
            }
        }
    }

    /// Stops the SQL threads that are running, and notes them.
    fn stop(&mut self) -> Result<(), Refusal> {
        self.stopped = running(self.server, self.session)?;
        let stops: Vec<_> = self.stopped.iter().map(|channel| self.statement("STOP", channel)).collect();
        for stop in stops {
            loop {
                let begun = Instant::now();
                match self.session.run(&stop) {
                    Ok(()) => break,
                    // It goes on stopping all the same, and can be started only when it has.
                    Err(refusal) if refusal.is_stop_timeout(begun) => {}
                    Err(refusal) => return Err(refusal),
                }
            }
        }
        Ok(())
    }

    /// Starts the threads that were stopped.
    fn start(&mut self) {
        for channel in std::mem::take(&mut self.stopped) {
            let start = self.statement("START", &channel);
            if let Err(refusal) = self.session.run(&start) {
                host::log(&format!("warning: not started again after the backup: {start}: {}", refusal.text));
            }
        }
    }

    fn statement(&self, verb: &str, channel: &str) -> String {
        let name = channel.replace('\\', "\\\\").replace('\'', "''");
        match (self.server.family, self.server.version) {
            (Family::MariaDb, _) => format!("{verb} SLAVE '{name}' SQL_THREAD"),
            (_, 80_022..) => format!("{verb} REPLICA SQL_THREAD FOR CHANNEL '{name}'"),
            _ => format!("{verb} SLAVE SQL_THREAD"),
        }
    }

    /// The positions of all channels, where the server keeps them in tables and gives rows. They are exact: nobody moves on.
    pub(crate) fn positions(&mut self) -> Option<Result<Vec<Channel>, String>> {
        if self.server.family != Family::MySql || self.server.version < 80_000 {
            return None;
        }
        let query = "SELECT r.Channel_name, m.Host, m.User_name, m.Port, r.Master_log_name, r.Master_log_pos \
                     FROM mysql.slave_relay_log_info r JOIN mysql.slave_master_info m USING (Channel_name) \
                     WHERE r.Channel_name NOT LIKE 'group\\_replication\\_%'";
        let channel = |row: Vec<String>| {
            let [name, host, user, port, file, position] = row.try_into().ok()?;
            Some(Channel { name, host, user, port, file, position })
        };
        let rows = self.session.rows(query).map_err(|refusal| refusal.text);
        Some(rows.map(|rows| rows.into_iter().filter_map(channel).collect()))
    }
}

impl Drop for AtRest<'_> {
    fn drop(&mut self) {
        self.start();
    }
}

/// The channels whose SQL threads are running. Those of group replication are not stopped by hand, and have no temporary
/// tables.
fn running(server: Server, session: &mut Session) -> Result<Vec<String>, Refusal> {
    match (server.family, server.version) {
        (Family::MariaDb, _) => {
            // Name, SQL state, IO state, then twelve columns of each server: the last is Slave_SQL_Running.
            let rows = session.rows("SHOW ALL SLAVES STATUS")?;
            let is_running = |row: &Vec<String>| row.get(13).is_some_and(|is| is != "No");
            Ok(rows.into_iter().filter(is_running).filter_map(|row| row.into_iter().next()).collect())
        }
        (Family::MySql, 80_000..) => {
            let query = "SELECT CHANNEL_NAME FROM performance_schema.replication_applier_status \
                         WHERE SERVICE_STATE='ON' AND CHANNEL_NAME NOT LIKE 'group\\_replication\\_%'";
            Ok(session.rows(query)?.into_iter().filter_map(|row| row.into_iter().next()).collect())
        }
        // There is but one channel, and no rows, so that it is seen by its thread.
        _ => {
            let threads = "EXISTS(SELECT * FROM performance_schema.threads";
            if !session.holds(&format!("{threads})"))? {
                let text = "it takes performance_schema=ON to see whether the SQL thread is running";
                return Err(Refusal { number: 0, text: text.into() });
            }
            let is_running = session.holds(&format!("{threads} WHERE NAME='thread/sql/slave_sql')"))?;
            Ok(is_running.then(String::new).into_iter().collect())
        }
    }
}

impl Refusal {
    /// Whether `STOP`, begun at `begun`, did not wait any longer: MySQL's rpl_stop_slave_timeout, which is 2 seconds at least.
    fn is_stop_timeout(&self, begun: Instant) -> bool {
        const STOP_SLAVE_SQL_THREAD_TIMEOUT: u32 = 1875;
        match self.number {
            0 => begun.elapsed() >= Duration::from_millis(1900),
            number => number == STOP_SLAVE_SQL_THREAD_TIMEOUT,
        }
    }
}

/// How many temporary tables the SQL threads hold.
fn open_tables() -> Option<u32> {
    host::number_at(c"slave_open_temp_tables").or_else(|| host::number_at(c"atomic_replica_open_temp_tables"))
}
