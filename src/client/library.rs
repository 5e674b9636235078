//! Moving things with one call: what programs use that want an answer rather than a stream of events.

use std::path::PathBuf;

use crate::client::api::Client;
use crate::client::download::GetOptions;
use crate::client::event::{self, Event, Summary};
use crate::client::plan::{GetItem, GetTarget, PutItem, PutSource};
use crate::client::upload::PutOptions;
use crate::error::{Error, Result};
use crate::path::{Escaped, RemotePath};

/// Failures that a [`Report`] holds; the others are counted.
const FAILURES_MAX: usize = 100;

/// What became of an upload or download.
#[derive(Debug, Default)]
pub struct Report {
    /// What was moved, was there already, was skipped and failed, in numbers.
    pub summary: Summary,
    /// What failed and why, at most the first hundred; names as raw bytes.
    pub failures: Vec<(Vec<u8>, Error)>,
}

impl Report {
    /// The summary, if nothing failed.
    ///
    /// # Errors
    /// The first failure, and how many there are.
    pub fn whole(mut self) -> Result<Summary> {
        if self.summary.failed == 0 {
            return Ok(self.summary);
        }
        if self.failures.is_empty() {
            return Err(Error::new(crate::ErrorKind::Internal, "something failed, and nothing says why"));
        }
        let (name, error) = self.failures.swap_remove(0);
        let others = match self.summary.failed {
            1 => String::new(),
            count => format!("{count} things failed, the first: "),
        };
        Err(error.context(format!("{others}{}", Escaped(&name))))
    }
}

impl Client {
    /// Uploads a file, or a directory with all that is in it, under this name.
    ///
    /// What is in the report as stored or unchanged is durable there. What [`Client::put`] tells is told to
    /// the events of this client, too.
    ///
    /// # Errors
    /// What ended the whole: no connection any more, or a breach of the protocol. What failed by itself, one file
    /// of many, is in the report: [`Report::whole`] makes an error of that too.
    ///
    /// # Cancel safety
    /// As [`Client::put`]: what was answered is stored, the rest leaves nothing that anybody sees.
    pub async fn upload(&self, source: impl Into<PathBuf>, target: &RemotePath, options: PutOptions) -> Result<Report> {
        let items = vec![PutItem { source: PutSource::Local(source.into()), target: target.clone() }];
        self.reported(async |client| client.put(items, options).await).await
    }

    /// Downloads a file, or a directory with all that is in it, to this path. It is there whole or not at all, and
    /// durable once the report says so.
    ///
    /// # Errors
    /// As [`Client::upload`].
    ///
    /// # Cancel safety
    /// What is told as done is there; the rest is not.
    pub async fn download(
        &self,
        source: &RemotePath,
        target: impl Into<PathBuf>,
        options: GetOptions,
    ) -> Result<Report> {
        let items = vec![GetItem { source: source.clone(), target: GetTarget::Local(target.into()) }];
        self.reported(async |client| client.get(items, options).await).await
    }

    /// Does `work` with a handle whose events are added up here, and told on.
    async fn reported(&self, work: impl AsyncFnOnce(Client) -> Result<()>) -> Result<Report> {
        let (events, mut receiver) = event::channel();
        let client = self.told_to(events);
        let mut report = Report::default();
        let listen = async {
            // It ends when the last handle with these events is gone, which `work` took.
            while let Some(event) = receiver.recv().await {
                report.summary.add(&event);
                if let Event::Failed { name, error, .. } = &event
                    && report.failures.len() < FAILURES_MAX
                {
                    report.failures.push((name.clone(), error.duplicate()));
                }
                self.events().tell(event).await;
            }
        };
        let (worked, ()) = tokio::join!(work(client), listen);
        worked?;
        report.summary.waited = self.waited();
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn report(failures: &[(&[u8], ErrorKind)]) -> Report {
        let mut report = Report::default();
        for (name, kind) in failures {
            let error = Error::new(*kind, "no");
            report.summary.add(&Event::Failed { item: None, name: name.to_vec(), error: error.duplicate() });
            report.failures.push((name.to_vec(), error));
        }
        report
    }

    #[test]
    fn a_report_is_whole_or_says_what_failed_first() {
        assert!(report(&[]).whole().is_ok());
        let error = report(&[(b"a\n", ErrorKind::NotFound)]).whole().unwrap_err();
        assert_eq!((error.kind(), error.chain()), (ErrorKind::NotFound, "a\\n: no".to_owned()));
        let error = report(&[(b"a", ErrorKind::Rights), (b"b", ErrorKind::Io)]).whole().unwrap_err();
        assert_eq!(error.chain(), "2 things failed, the first: a: no");
    }
}
