//! Encodings that the messages share: paths, roots, times, bounded lists.
//!
//! All of it is CBOR (RFC 8949) by `minicbor`. Every list is bounded by its type, so that a payload of 64 KiB can
//! not make a decoder allocate more than a small multiple of that.

use minicbor::decode::{Decode, Decoder, Error};
use minicbor::encode::{self, Encode, Encoder, Write};

use crate::hash::{GroupValue, Root};
use crate::limits;
use crate::path::RemotePath;
use crate::xattrs::Xattrs;

impl<C> Encode<C> for RemotePath {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(self.components().len() as u64)?;
        for part in self.components() {
            e.bytes(part.as_bytes())?;
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for RemotePath {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<RemotePath, Error> {
        let count = bounded(d, limits::PATH_DEPTH_MAX, "path components")?;
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            parts.push(d.bytes()?);
        }
        RemotePath::from_components(parts).map_err(|error| Error::message(error.to_string()))
    }
}

impl<C> Encode<C> for Xattrs {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(self.all().len() as u64)?;
        for xattr in self.all() {
            e.array(2)?.bytes(xattr.name())?.bytes(xattr.value())?;
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Xattrs {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Xattrs, Error> {
        let count = bounded(d, limits::XATTR_COUNT_MAX, "extended attributes")?;
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            if d.array()? != Some(2) {
                return Err(Error::message("an extended attribute is a name and a value"));
            }
            pairs.push((d.bytes()?.to_vec(), d.bytes()?.to_vec()));
        }
        Xattrs::in_order(pairs).map_err(|error| Error::message(error.to_string()))
    }
}

/// Reads the length of a definite array and compares it with its bound.
fn bounded(d: &mut Decoder<'_>, max: usize, what: &'static str) -> Result<usize, Error> {
    match d.array()? {
        Some(count) if count <= max as u64 => Ok(count as usize),
        Some(_) => Err(Error::message(format!("too many {what}"))),
        None => Err(Error::message("arrays have a definite length")),
    }
}

macro_rules! fixed_bytes {
    ($name:ident) => {
        impl<C> Encode<C> for $name {
            fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<$name, Error> {
                let bytes = d.bytes()?.try_into().map_err(|_| Error::message("a byte string of another length"))?;
                Ok($name(bytes))
            }
        }
    };
}

fixed_bytes!(Root);
fixed_bytes!(GroupValue);
fixed_bytes!(Bytes16);
fixed_bytes!(Bytes32);
fixed_bytes!(InviteId);

/// A public key, or the hash of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bytes32(pub [u8; 32]);

/// 128 random bits: an upload id, a session token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bytes16(pub [u8; 16]);

impl std::fmt::Debug for Bytes16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Some of these are secrets; none is worth reading.
        f.write_str("Bytes16(…)")
    }
}

/// By what an invite is named. It is no secret: nothing can be redeemed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InviteId(pub [u8; 8]);

impl std::fmt::Display for InviteId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for InviteId {
    type Err = String;

    /// 16 digits, as they are shown.
    fn from_str(text: &str) -> Result<InviteId, String> {
        let is_id = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_id);
        let number = number.ok_or("an invite is named by 16 digits, as `sealift invite ls` prints them")?;
        Ok(InviteId(number.to_be_bytes()))
    }
}

/// A modification time: seconds and nanoseconds since 1970-01-01 UTC; seconds before that are negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtime {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds after them, below 1,000,000,000.
    pub nanos: u32,
}

impl<C> Encode<C> for Mtime {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?.i64(self.seconds)?.u32(self.nanos)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Mtime {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Mtime, Error> {
        if d.array()? != Some(2) {
            return Err(Error::message("a time is an array of two numbers"));
        }
        let (seconds, nanos) = (d.i64()?, d.u32()?);
        if nanos >= 1_000_000_000 {
            return Err(Error::message("a time with more than 999,999,999 nanoseconds"));
        }
        Ok(Mtime { seconds, nanos })
    }
}

/// A list of at most `MAX` items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T, const MAX: usize>(pub Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        List(Vec::new())
    }
}

impl<C, T: Encode<C>, const MAX: usize> Encode<C> for List<T, MAX> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        debug_assert!(self.0.len() <= MAX, "a list longer than its type allows");
        e.array(self.0.len() as u64)?;
        self.0.iter().try_for_each(|item| item.encode(e, ctx))
    }
}

impl<'b, C, T: Decode<'b, C>, const MAX: usize> Decode<'b, C> for List<T, MAX> {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, Error> {
        let count = bounded(d, MAX, "items in a list")?;
        // Every item takes at least one byte of what is left, so a lie about the count allocates no more than that.
        let rest = d.input().len() - d.position();
        let mut items = Vec::with_capacity(count.min(rest));
        for _ in 0..count {
            items.push(T::decode(d, ctx)?);
        }
        Ok(List(items))
    }
}
