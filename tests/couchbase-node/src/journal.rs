//! What a cluster keeps on disk: one file that only grows, read from the start.
//!
//! A record is its length, its checksum and its bytes. A record that was cut off by a crash ends the file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::state::{BucketRecord, Document, Key};

#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
}

#[derive(Debug)]
pub(crate) enum Record {
    Bucket(BucketRecord),
    BucketDropped(String),
    Flushed(String),
    Document(DocumentRecord),
}

#[derive(Debug)]
pub(crate) struct DocumentRecord {
    pub(crate) bucket: String,
    pub(crate) key: Key,
    pub(crate) document: Document,
}

const BUCKET: u8 = 1;
const BUCKET_DROPPED: u8 = 2;
const FLUSHED: u8 = 3;
const DOCUMENT: u8 = 4;

/// Bytes of a record's length and checksum.
const HEAD_BYTES: usize = 8;

impl Journal {
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join("cluster.journal");
        let file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        Ok(Self { file })
    }

    /// Every whole record; what follows the last one is cut off.
    pub(crate) fn read_all(&mut self) -> io::Result<Vec<Record>> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        let mut rest = Bytes::from(bytes);
        let total = rest.len();
        let mut records = Vec::new();
        let mut good = 0;
        while rest.len() >= HEAD_BYTES {
            let length = rest.get_u32() as usize;
            let checksum = rest.get_u32();
            if rest.len() < length {
                break;
            }
            let body = rest.split_to(length);
            if crc32fast::hash(&body) != checksum {
                break;
            }
            records.push(read_record(body)?);
            good = total - rest.len();
        }
        self.file.set_len(good as u64)?;
        Ok(records)
    }

    fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let mut record = BytesMut::with_capacity(HEAD_BYTES + body.len());
        record.put_u32(u32::try_from(body.len()).expect("a document is 20 MiB at most"));
        record.put_u32(crc32fast::hash(body));
        record.put_slice(body);
        self.file.write_all(&record)
    }

    pub(crate) fn bucket(&mut self, record: &BucketRecord) -> io::Result<()> {
        let mut body = vec![BUCKET];
        serde_json::to_writer(&mut body, record)?;
        self.append(&body)
    }

    pub(crate) fn bucket_dropped(&mut self, name: &str) -> io::Result<()> {
        self.append(&[&[BUCKET_DROPPED], name.as_bytes()].concat())
    }

    pub(crate) fn flushed(&mut self, name: &str) -> io::Result<()> {
        self.append(&[&[FLUSHED], name.as_bytes()].concat())
    }

    pub(crate) fn document(
        &mut self,
        bucket: &str,
        key: &Key,
        document: &Document,
    ) -> io::Result<()> {
        let mut body = BytesMut::with_capacity(64 + key.1.len() + document.value.len());
        body.put_u8(DOCUMENT);
        put_part(&mut body, bucket.as_bytes());
        body.put_u32(key.0);
        put_part(&mut body, &key.1);
        for number in [document.cas, document.seqno, document.expiry] {
            body.put_u64(number);
        }
        body.put_u32(document.flags);
        body.put_u8(document.datatype);
        body.put_u8(u8::from(document.is_deleted));
        put_part(&mut body, &serde_json::to_vec(&document.xattrs)?);
        body.put_slice(&document.value);
        self.append(&body)
    }
}

fn put_part(body: &mut BytesMut, part: &[u8]) {
    body.put_u32(u32::try_from(part.len()).expect("a document is 20 MiB at most"));
    body.put_slice(part);
}

fn take_part(body: &mut Bytes) -> io::Result<Bytes> {
    let length = body.try_get_u32().map_err(broken)? as usize;
    if length > body.len() {
        return Err(broken("a part is longer than its record"));
    }
    Ok(body.split_to(length))
}

fn take_text(bytes: &Bytes) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(broken)
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn read_record(mut body: Bytes) -> io::Result<Record> {
    match body.try_get_u8().map_err(broken)? {
        BUCKET => Ok(Record::Bucket(serde_json::from_slice(&body)?)),
        BUCKET_DROPPED => Ok(Record::BucketDropped(take_text(&body)?)),
        FLUSHED => Ok(Record::Flushed(take_text(&body)?)),
        DOCUMENT => {
            let bucket = take_text(&take_part(&mut body)?)?;
            let collection = body.try_get_u32().map_err(broken)?;
            let key = (collection, take_part(&mut body)?);
            let cas = body.try_get_u64().map_err(broken)?;
            let seqno = body.try_get_u64().map_err(broken)?;
            let expiry = body.try_get_u64().map_err(broken)?;
            let flags = body.try_get_u32().map_err(broken)?;
            let datatype = body.try_get_u8().map_err(broken)?;
            let is_deleted = body.try_get_u8().map_err(broken)? != 0;
            let xattrs = serde_json::from_slice(&take_part(&mut body)?)?;
            let document =
                Document { cas, seqno, flags, expiry, datatype, value: body, xattrs, is_deleted };
            Ok(Record::Document(DocumentRecord { bucket, key, document }))
        }
        other => Err(broken(format!("a record of kind {other} is unknown"))),
    }
}
