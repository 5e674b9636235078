//! Sessions: a client's first connection, and the further ones that join it by a token to carry content.
//!
//! Transfers are described, finished and answered on the first connection. A joined one (a *lane*) carries content
//! for them under their numbers and nothing else. A session lives as long as its first connection; its token is
//! dead with it, as then its transfers are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::groups::Groups;
use super::source::Source;
use super::spent::Spent;
use crate::access::Principal;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::JOINS_MAX;
use crate::protocol::Bytes16;

/// The sessions of a server, by hashes of their tokens: looking one up compares nothing of a token that was given with
/// one that was shown, so how far a guess is right cannot show in the time that this takes.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<TokenHash, Arc<Session>>>>);

/// By which a token is looked up. All of it depends on every bit of the token.
type TokenHash = [u8; 32];

fn hash_of(token: &Bytes16) -> TokenHash {
    blake3::derive_key("sealift 2026-11 session token", &token.0)
}

/// What the connections of one session share.
pub(super) struct Session {
    principal: Principal,
    /// Compared in constant time only.
    token: [u8; 16],
    /// Connections that have joined so far.
    joins: AtomicUsize,
    /// The highest number that a transfer has had on the first connection.
    last_transfer: AtomicU32,
    /// Transfers that content may move for.
    transfers: Mutex<HashMap<u32, Transfer>>,
    /// Tells the first connection that there is something for it to look at.
    pub(super) news: Notify,
    /// The first connection has ended.
    pub(super) ended: CancellationToken,
    /// What its work took its time with.
    pub(super) spent: Arc<Spent>,
}

/// What the first connection of a session is to know of its transfers.
#[derive(Default)]
pub(super) struct News {
    /// Those that a lane could not go on with.
    pub(super) failed: Vec<(u32, Error)>,
    /// Uploads whose file a lane waits for.
    pub(super) waiting: Vec<u32>,
    /// Downloads that were sent whole just now, of which the client wants to be told that.
    pub(super) sent: Vec<u32>,
}

#[derive(Clone)]
pub(super) enum Transfer {
    Upload(Arc<Groups>),
    Download(Arc<Source>),
}

impl Transfer {
    /// Why a lane could not go on with it, if so.
    pub(super) fn failure(&self) -> Option<Error> {
        match self {
            Transfer::Upload(groups) => groups.failure(),
            Transfer::Download(source) => source.failure(),
        }
    }
}

/// Ends a session when its first connection does.
pub(super) struct Opened {
    sessions: Sessions,
    pub(super) token: Bytes16,
    pub(super) session: Arc<Session>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<TokenHash, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session for a first connection.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub(super) fn open(&self, principal: &Principal) -> Result<Opened> {
        let mut token = [0; 16];
        getrandom::fill(&mut token)
            .map_err(|error| Error::new(ErrorKind::Internal, "get random bytes from the system").with_source(error))?;
        let session = Arc::new(Session {
            principal: principal.clone(),
            token,
            joins: AtomicUsize::new(0),
            last_transfer: AtomicU32::new(0),
            transfers: Mutex::default(),
            news: Notify::new(),
            ended: CancellationToken::new(),
            spent: Arc::default(),
        });
        let token = Bytes16(token);
        self.lock().insert(hash_of(&token), Arc::clone(&session));
        Ok(Opened { sessions: self.clone(), token, session })
    }

    /// Lets a further connection into a session of the same principal with the same key.
    ///
    /// # Errors
    /// `Session` for a token that is none of this principal's, whatever else it may be; `Limit` for one join more
    /// than a session may have.
    pub(super) fn join(&self, token: &Bytes16, principal: &Principal) -> Result<Arc<Session>> {
        let session = self.lock().get(&hash_of(token)).cloned();
        let is_its = |session: &Arc<Session>| bool::from(session.token.ct_eq(&token.0));
        let session = session.filter(is_its).filter(|session| session.principal == *principal).ok_or_else(|| {
            Error::new(ErrorKind::Session, "no session that this connection could join has that token")
        })?;
        let joined = session
            .joins
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |joins| (joins < JOINS_MAX).then_some(joins + 1));
        match joined {
            Ok(_) => Ok(session),
            Err(_) => {
                let message = format!("{JOINS_MAX} connections have joined this session, as many as may");
                Err(Error::new(ErrorKind::Limit, message))
            }
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.sessions.lock().remove(&hash_of(&self.token));
        self.session.ended.cancel();
        let transfers = std::mem::take(&mut *self.session.transfers());
        for transfer in transfers.into_values() {
            if let Transfer::Upload(groups) = transfer {
                groups.cut();
            }
        }
    }
}

impl Session {
    fn transfers(&self) -> MutexGuard<'_, HashMap<u32, Transfer>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether content may come over more than one connection.
    pub(super) fn is_shared(&self) -> bool {
        self.joins.load(Ordering::Relaxed) > 0
    }

    /// The first connection has begun a transfer or request of this number.
    pub(super) fn begun(&self, transfer: u32) {
        self.last_transfer.store(transfer, Ordering::Release);
    }

    /// Whether there ever was a transfer of this number.
    pub(super) fn has_been(&self, transfer: u32) -> bool {
        transfer > 0 && transfer <= self.last_transfer.load(Ordering::Acquire)
    }

    /// Content may move for a transfer.
    pub(super) fn lend(&self, transfer: u32, shared: Transfer) {
        self.transfers().insert(transfer, shared);
    }

    /// The transfer of this number that content may move for.
    pub(super) fn borrow(&self, transfer: u32) -> Option<Transfer> {
        self.transfers().get(&transfer).cloned()
    }

    /// Whether content may still move for it.
    pub(super) fn is_lent(&self, transfer: u32) -> bool {
        self.transfers().contains_key(&transfer)
    }

    /// A transfer is over.
    pub(super) fn end(&self, transfer: u32) {
        if let Some(Transfer::Upload(groups)) = self.transfers().remove(&transfer) {
            groups.cut();
        }
    }

    /// A lane could not read on for a download.
    pub(super) fn failed(&self, transfer: u32, error: &Error) {
        if let Some(Transfer::Download(source)) = self.transfers().get(&transfer) {
            source.failed(error);
        }
        self.news.notify_one();
    }

    /// What has been found of transfers since the last look.
    pub(super) fn look(&self) -> News {
        let transfers = self.transfers();
        let mut news = News::default();
        for (&number, transfer) in transfers.iter() {
            news.failed.extend(transfer.failure().map(|error| (number, error)));
            match transfer {
                Transfer::Upload(groups) if groups.wants_file() => news.waiting.push(number),
                Transfer::Download(source) if source.take_end() => news.sent.push(number),
                Transfer::Upload(_) | Transfer::Download(_) => {}
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certified(key: u8) -> Principal {
        Principal::Certified { name: Some("same".to_owned()), key: [key; 32] }
    }

    /// Case A09: how much of a token is right does not show, by construction. Nothing that was given is kept where it is
    /// looked up, and where a guess that is wrong in one bit is looked up has as little to do with the right place as
    /// any other.
    #[test]
    fn a_nearly_right_token_is_looked_up_like_any_other() {
        let sessions = Sessions::default();
        let opened = sessions.open(&certified(1)).unwrap();
        let distance = |left: &TokenHash, right: &TokenHash| -> u32 {
            left.iter().zip(right).map(|(left, right)| (left ^ right).count_ones()).sum()
        };
        let (&place, _) = sessions.lock().iter().next().unwrap();
        assert!(place.windows(4).all(|part| !opened.token.0.windows(4).any(|given| given == part)));
        let mut places = Vec::new();
        for bit in 0..128 {
            let mut near = opened.token;
            near.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sessions.join(&near, &certified(1)).err().map(|error| error.kind()), Some(ErrorKind::Session));
            places.push(hash_of(&near));
        }
        // 256 coins each: less than 64 or more than 192 of a kind come up once in 10^15 tries.
        assert!(places.iter().all(|near| (64..=192).contains(&distance(near, &place))));
        // Nor is a session believed for its place alone.
        let (other, impostor) = (Bytes16([7; 16]), sessions.lock().get(&place).cloned().unwrap());
        sessions.lock().insert(hash_of(&other), impostor);
        assert!(sessions.join(&other, &certified(1)).is_err());
    }

    #[test]
    fn a_token_serves_its_own_key_and_as_long_as_its_session() {
        let sessions = Sessions::default();
        let opened = sessions.open(&certified(1)).unwrap();
        let join =
            |token: &Bytes16, key| sessions.join(token, &certified(key)).map(|_| ()).map_err(|error| error.kind());
        assert!(!opened.session.is_shared());
        assert_eq!(join(&opened.token, 1), Ok(()));
        assert!(opened.session.is_shared());
        assert_eq!(join(&opened.token, 2), Err(ErrorKind::Session), "the same name with another key");
        assert_eq!(
            sessions.join(&opened.token, &Principal::Anonymous).map(|_| ()).map_err(|error| error.kind()),
            Err(ErrorKind::Session)
        );
        let mut wrong = opened.token;
        wrong.0[15] ^= 1;
        assert_eq!(join(&wrong, 1), Err(ErrorKind::Session));
        for _ in 1..JOINS_MAX {
            assert_eq!(join(&opened.token, 1), Ok(()));
        }
        assert_eq!(join(&opened.token, 1), Err(ErrorKind::Limit));
        let other = sessions.open(&certified(1)).unwrap();
        assert_ne!(other.token, opened.token);
        let token = opened.token;
        let ended = opened.session.ended.clone();
        drop(opened);
        assert!(ended.is_cancelled());
        assert_eq!(join(&token, 1), Err(ErrorKind::Session), "dead");
        assert_eq!(join(&other.token, 1), Ok(()));
    }
}
