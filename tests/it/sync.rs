//! `sealift sync` as people run it.
