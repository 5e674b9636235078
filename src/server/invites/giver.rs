//! The certificates of who gave an invite: those that were shown then, and the latest since.
//!
//! What was shown when an invite was given stays what it stands on: once that is on a list of revoked ones, or is not of
//! this server's authorities, the invite has ended, whatever else its giver has by now. But a certificate that only runs
//! out is no reason: who comes back with a newer one, and is still the same by the rules, goes on to answer for what it
//! gave.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tracing::info;

use super::{Invites, Kept, lock};
use crate::access::Access;
use crate::error::{Error, Result};
use crate::limits::INVITE_CHAIN_LEN_MAX;
use crate::server::shared::{Shared, Who};
use crate::tls::{ServerTls, x509};

/// Certificates that a client showed, its own first.
pub(in crate::server) type Shown = Arc<Vec<CertificateDer<'static>>>;

/// The certificates that an invite stands on.
#[derive(Clone)]
pub(in crate::server) struct Giver {
    /// Shown when it was given.
    pub(super) first: Shown,
    /// Shown later, where that is good for longer.
    pub(super) latest: Option<Shown>,
}

impl Giver {
    pub(super) fn of(first: Vec<CertificateDer<'static>>, latest: Vec<CertificateDer<'static>>) -> Giver {
        Giver { first: Arc::new(first), latest: (!latest.is_empty()).then(|| Arc::new(latest)) }
    }

    /// Whether who gave it would be let in now.
    ///
    /// # Errors
    /// As [`ServerTls::verify_client`].
    pub(in crate::server) fn verify(&self, tls: &ServerTls, now: SystemTime) -> Result<()> {
        let Some(latest) = &self.latest else { return tls.verify_client(&self.first, now) };
        // That it has run out is what the latest is for.
        tls.verify_client(&self.first, end_of(&self.first).map_or(now, |end| end.min(now)))?;
        tls.verify_client(latest, now)
    }
}

/// The last moment at which the first of these certificates is good.
fn end_of(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let facts = x509::Facts::parse(chain.first()?).ok()?;
    let end = u64::try_from(facts.not_after.unix_timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end))
}

pub(super) fn fits(chain: &[CertificateDer<'_>]) -> bool {
    chain.len() <= 16 && chain.iter().map(|part| part.len()).sum::<usize>() <= INVITE_CHAIN_LEN_MAX
}

impl Invites {
    /// Invites that this client gave, and which do not stand on the certificate that it shows now.
    fn renewable(&self, access: &Access, who: &Who) -> Vec<Arc<Kept>> {
        let is_other = |kept: &Kept| {
            let giver = lock(&kept.giver);
            let shown = giver.latest.as_ref().unwrap_or(&giver.first);
            shown.first() != who.chain().first()
        };
        let is_its = |kept: &&Arc<Kept>| access.is_same(&who.principal, &kept.terms.issuer()) && is_other(kept);
        let table = lock(&self.table);
        table.values().flatten().filter(is_its).cloned().collect()
    }
}

impl Kept {
    /// The certificates of who gave it.
    pub(super) fn giver(&self) -> Giver {
        lock(&self.giver).clone()
    }

    /// Lets the invite stand on these certificates too, if they are good for longer. Blocks.
    fn renew(&self, chain: &[CertificateDer<'static>]) -> Result<()> {
        let before = {
            let mut giver = lock(&self.giver);
            let end = end_of(giver.latest.as_ref().unwrap_or(&giver.first));
            if !fits(chain) || end_of(chain) <= end {
                return Ok(());
            }
            giver.latest.replace(Arc::new(chain.to_vec()))
        };
        self.save().inspect_err(|_| lock(&self.giver).latest = before)?;
        info!("invite {} stands on the newer certificate of {}", self.terms.id, self.terms.issuer());
        Ok(())
    }
}

/// Takes note of the certificate of a client that was let in, for the invites that it has given. Returns at once; where
/// there is something to write, a disk thread does.
pub(in crate::server) fn seen(shared: &Arc<Shared>, who: &Who) {
    let Some(invites) = &shared.invites else { return };
    let rules = Arc::clone(&shared.rules.borrow());
    let renewable = invites.renewable(&rules.access, who);
    if renewable.is_empty() {
        return;
    }
    let chain = who.chain().to_vec();
    shared.tasks.spawn_blocking(move || {
        let failed = |error: &Error| tracing::error!("keep a newer certificate: {}", error.chain());
        renewable.iter().filter_map(|kept| kept.renew(&chain).err()).for_each(|error| failed(&error));
    });
}
