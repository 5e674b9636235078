use super::*;

#[test]
fn headers_go_round_and_bounds_hold() {
    for &kind in Kind::ALL {
        let (min, max) = kind.len_range();
        for len in [min, max] {
            let header = Header::new(kind, 7, len);
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
        let mut bytes = Header::new(kind, 7, max).encode();
        for len in [max as u32 + 1, 1 << 31, u32::MAX] {
            bytes[8..].copy_from_slice(&len.to_be_bytes());
            assert_eq!(Header::decode(&bytes), Err(Breach::TooLong { kind, len }));
        }
        bytes[8..].copy_from_slice(&[0; 4]);
        assert_eq!(Header::decode(&bytes), Err(Breach::TooShort { kind, len: 0 }));
        let mut bytes = Header::new(kind, 7, max).encode();
        bytes[1] = 1;
        assert_eq!(Header::decode(&bytes), Err(Breach::Reserved));
    }
}

#[test]
fn unknown_kinds_have_their_fate() {
    let mut bytes = [0; FRAME_HEADER_LEN];
    bytes[0] = 0x7f;
    assert_eq!(Header::decode(&bytes), Err(Breach::UnknownKind(0x7f)));
    bytes[0] = 0x80;
    assert_eq!(Header::decode(&bytes), Ok(Header { kind: None, transfer: 0, len: 0 }));
    bytes[8] = 0xff;
    assert_eq!(Header::decode(&bytes), Err(Breach::UnknownKind(0x80)));
}

#[test]
fn lists_and_paths_are_bounded_before_they_are_read() {
    // An array that announces 2^32 components in five bytes.
    let bytes = [0xa1, 0x00, 0x9a, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(Stat::from_payload(&bytes), Err(Breach::Malformed { .. })));
    // Indefinite arrays have no bound.
    let bytes = [0xa1, 0x00, 0x9f, 0xff];
    assert!(matches!(Stat::from_payload(&bytes), Err(Breach::Malformed { .. })));
    // A component with a slash.
    let bytes = [0xa1, 0x00, 0x81, 0x43, b'a', b'/', b'b'];
    assert!(matches!(Stat::from_payload(&bytes), Err(Breach::Malformed { .. })));
    // Bytes after the end.
    let bytes = [0xa1, 0x00, 0x80, 0x00];
    assert!(matches!(Stat::from_payload(&bytes), Err(Breach::Malformed { .. })));
}

#[test]
fn unknown_fields_are_skipped() {
    // {0: [], 99: {"x": [1, 2]}}
    let bytes = [0xa2, 0x00, 0x80, 0x18, 99, 0xa1, 0x61, b'x', 0x82, 1, 2];
    assert_eq!(Stat::from_payload(&bytes), Ok(Stat { path: crate::path::RemotePath::root(), xattrs: None }));
}
