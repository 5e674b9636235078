//! What is asked together with the hello.
//!
//! The hellos take a round trip, and so does whatever is asked after them. Over a long link, what a command is known to
//! begin with leaves right behind the client's hello, and is answered right behind the server's. A request that was not
//! asked so is asked when its turn comes, as ever.
//!
//! Invariants: nothing leaves before the handshake has proven the server; no content leaves before its hello was read;
//! what is asked so stores and removes nothing, and may be asked again over another connection.

use bytes::Bytes;

use super::GetOptions;
use super::download::first_gets;
use super::plan::{GetItem, PutItem, PutSource};
use super::remote::Endpoint;
use super::upload::{PutOptions, describe, put_message};
use super::walk::{Found, SourceVersion, Walk};
use crate::client::api::random_id;
use crate::limits::UNASKED_FILE_MAX;
use crate::path::RemotePath;
use crate::protocol::{Bytes16, Get, ListDirectory, Message, Put, Stat};

/// What a command is known to begin with, before there is a connection.
#[derive(Clone, Debug, Default)]
pub struct FirstAsks(Vec<FirstAsk>);

#[derive(Clone, Debug)]
enum FirstAsk {
    Stat(Stat),
    List(ListDirectory),
    Get(Get),
    Put(Put, SourceVersion),
}

/// A request that may leave with the hello, as the frame that it is.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) frame: Bytes,
    /// For a download: how much may come without being wanted.
    pub(crate) unasked_max: u64,
    /// For a download: how large a file may be whose first group may.
    pub(crate) first_max: Option<u64>,
    /// For an upload: its name.
    pub(crate) put: Option<RemotePath>,
}

/// An upload that may have been described with the hello.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) target: RemotePath,
    pub(crate) version: SourceVersion,
    pub(crate) upload_id: Bytes16,
}

impl FirstAsks {
    /// What stands under a name.
    #[must_use]
    pub fn stat(path: &RemotePath) -> FirstAsks {
        FirstAsks(vec![FirstAsk::Stat(Stat { path: path.clone(), xattrs: None })])
    }

    /// What stands under a name and, if that is a directory, in it.
    #[must_use]
    pub fn listing(path: &RemotePath) -> FirstAsks {
        let FirstAsks(mut asks) = FirstAsks::stat(path);
        asks.push(FirstAsk::List(super::listing::request(path, None, false)));
        FirstAsks(asks)
    }

    /// What a download from this server begins with, where one file or directory is named. It looks at where that goes.
    #[must_use]
    pub fn get(server: &Endpoint, items: &[GetItem], options: &GetOptions) -> FirstAsks {
        let [item] = items else { return FirstAsks::default() };
        let (get, stat) = first_gets(item, options, &server.to_string());
        FirstAsks(get.map(FirstAsk::Get).into_iter().chain(stat.map(FirstAsk::Stat)).collect())
    }

    /// What an upload begins with, where one file is named that is too large to be sent without asking. It looks at the
    /// file.
    #[must_use]
    pub fn put(items: &[PutItem], options: &PutOptions) -> FirstAsks {
        FirstAsks(description(items, options).into_iter().collect())
    }

    /// The frames, numbered as the first transfers of a session; for uploads of who is known again by this.
    pub(crate) fn frames(&self, resume: Option<Bytes16>) -> Vec<Ask> {
        let ask = |(number, ask): (u32, &FirstAsk)| match ask {
            FirstAsk::Stat(stat) => Ask::of(stat, number),
            FirstAsk::List(list) => Ask::of(list, number),
            FirstAsk::Get(get) => {
                Ask { unasked_max: get.unasked_max, first_max: get.first_max, ..Ask::of(get, number) }
            }
            FirstAsk::Put(put, _) => {
                let put = Put { resume, ..put.clone() };
                Ask { put: Some(put.path.clone()), ..Ask::of(&put, number) }
            }
        };
        (1..).zip(&self.0).map(ask).collect()
    }

    /// Whether a file is fetched to a file. What goes to a stream comes in order, over one connection, and is opened
    /// without a look at what stands there.
    pub(crate) fn is_fetch(&self) -> bool {
        matches!(self.0[..], [FirstAsk::Get(_), FirstAsk::Stat(_)])
    }

    /// The upload that is among them.
    pub(crate) fn described(&self) -> Option<Described> {
        self.0.iter().find_map(|ask| match ask {
            FirstAsk::Put(Put { path, upload_id, .. }, version) => {
                Some(Described { target: path.clone(), version: *version, upload_id: *upload_id })
            }
            _ => None,
        })
    }
}

impl Ask {
    fn of<M: Message>(request: &M, number: u32) -> Ask {
        Ask { frame: request.to_frame(number).into(), unasked_max: 0, first_max: None, put: None }
    }
}

/// The description of the only file that an upload names.
fn description(items: &[PutItem], options: &PutOptions) -> Option<FirstAsk> {
    let [item] = items else { return None };
    let PutSource::Local(path) = &item.source else { return None };
    let is_plain = !options.dry_run && !options.xattrs && options.expect_size.is_none();
    if !is_plain || !path.is_file() {
        return None;
    }
    let mut walk = Walk::with(vec![item.clone()], options.filter.clone(), options.links);
    // Whatever else it may find is told when it is walked for good.
    let Some(Found::File { target, version, attributes, .. }) = walk.next() else { return None };
    if version.size <= UNASKED_FILE_MAX {
        return None;
    }
    let put = put_message(&target, random_id().ok()?, options.if_exists, None);
    Some(FirstAsk::Put(describe(put, &version, &attributes, options.special_modes), version))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::client::ahead::LANES_FROM;
    use crate::client::filter::Filter;
    use crate::client::keep;
    use crate::client::plan::GetTarget;
    use crate::protocol::{FRAME_HEADER_LEN, Header, IfExists, Kind};
    use crate::storage;

    fn named(name: &str) -> RemotePath {
        RemotePath::parse(name.as_bytes()).unwrap()
    }

    fn kinds(asks: &FirstAsks) -> Vec<(Kind, u32)> {
        let header = |ask: &Ask| {
            let header = Header::decode(ask.frame[..FRAME_HEADER_LEN].try_into().unwrap()).unwrap();
            (header.kind.unwrap(), header.transfer)
        };
        asks.frames(None).iter().map(header).collect()
    }

    fn puts(path: &Path, options: &PutOptions) -> FirstAsks {
        let item = PutItem { source: PutSource::Local(path.to_path_buf()), target: named("x") };
        FirstAsks::put(&[item], options)
    }

    #[test]
    fn requests_are_numbered_like_the_first_of_a_session() {
        assert_eq!(kinds(&FirstAsks::default()), []);
        assert_eq!(kinds(&FirstAsks::stat(&named("x"))), [(Kind::Stat, 1)]);
        assert_eq!(kinds(&FirstAsks::listing(&RemotePath::root())), [(Kind::Stat, 1), (Kind::List, 2)]);
    }

    #[test]
    fn a_download_begins_with_what_cannot_come_twice() {
        let folder = tempfile::tempdir().unwrap();
        let here = |name: &str, len: u64| {
            fs::File::create(folder.path().join(name)).unwrap().set_len(len).unwrap();
        };
        here("small", 9);
        here("large", UNASKED_FILE_MAX + 1);
        let item = |name: &str| GetItem { source: named("x"), target: GetTarget::Local(folder.path().join(name)) };
        let (plain, both) = (GetOptions::default, vec![(Kind::Get, 1), (Kind::Stat, 2)]);
        let stat = vec![(Kind::Stat, 1)];
        let server = Endpoint::parse(b"there").unwrap();
        let get = |name: &str| FirstAsks::get(&server, &[item(name)], &plain()).frames(None).remove(0);
        let most = |name: &str| (get(name).unasked_max, get(name).first_max);
        let new = (UNASKED_FILE_MAX, Some(LANES_FROM - 1));
        assert_eq!((most("new"), most("large")), (new, (0, None)));
        // Something of a download of the same file to the same name is here.
        let key = keep::key("there", &named("x"), &named("new"));
        here(&storage::kept_name(&key), 0);
        assert_eq!((most("new"), most("newer")), ((UNASKED_FILE_MAX, None), new));
        let mut filter = Filter::default();
        filter.max_size = Some(1);
        for (what, name, options, expected) in [
            ("nothing is here", "new", plain(), &both),
            ("a large file is here", "large", plain(), &both),
            ("it may be the same", "small", plain(), &stat),
            ("only tried", "new", GetOptions { dry_run: true, ..plain() }, &stat),
            ("not every server has attributes", "new", GetOptions { xattrs: true, ..plain() }, &stat),
            ("it may be left out", "new", GetOptions { filter: filter.into(), ..plain() }, &stat),
        ] {
            let asks = FirstAsks::get(&server, &[item(name)], &options);
            assert_eq!(&kinds(&asks), expected, "{what}");
            assert_eq!(asks.is_fetch(), expected == &both, "{what}");
        }
        let stream = GetItem { source: named("x"), target: GetTarget::Stream };
        let asks = FirstAsks::get(&server, &[stream], &plain());
        assert_eq!(kinds(&asks), [(Kind::Get, 1)]);
        assert_eq!(asks.frames(None)[0].first_max, Some(u64::MAX), "nothing else brings any of it");
        assert!(!asks.is_fetch());
        assert_eq!(kinds(&FirstAsks::get(&server, &[item("new"), item("large")], &plain())), [], "several");
    }

    #[test]
    fn an_upload_begins_with_the_description_of_a_large_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::File::create(path("small")).unwrap().set_len(UNASKED_FILE_MAX).unwrap();
        fs::File::create(path("large")).unwrap().set_len(UNASKED_FILE_MAX + 1).unwrap();
        let plain = PutOptions::default;
        let asks = puts(&path("large"), &PutOptions { if_exists: IfExists::Skip, ..plain() });
        assert_eq!(kinds(&asks), [(Kind::Put, 1)]);
        let frame = asks.frames(Some(Bytes16([7; 16]))).remove(0);
        let put = Put::from_payload(&frame.frame[FRAME_HEADER_LEN..]).unwrap();
        let described = asks.described().unwrap();
        assert_eq!(
            (put.size, put.if_exists, put.resume),
            (Some(UNASKED_FILE_MAX + 1), IfExists::Skip, Some(Bytes16([7; 16])))
        );
        assert_eq!((put.path, put.upload_id), (described.target, described.upload_id));
        assert_eq!(frame.put, Some(named("x")));
        for (what, name, options) in [
            ("it comes whole", "small", plain()),
            ("a directory", ".", plain()),
            ("not there", "none", plain()),
            ("only tried", "large", PutOptions { dry_run: true, ..plain() }),
            ("not every server has attributes", "large", PutOptions { xattrs: true, ..plain() }),
            ("it may be refused here", "large", PutOptions { expect_size: Some(1), ..plain() }),
        ] {
            assert_eq!(kinds(&puts(&path(name), &options)), [], "{what}");
        }
    }
}
