//! A whole API server over a fresh store, called in process.
#![allow(dead_code, reason = "each test binary uses its part")]
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use edge_api::UserInfo;
use edge_apiserver::{AdmissionControl, ApiServer, Body, NodeDialer, Options, Parts, Stream};
use serde_json::Value;
use std::io;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub const JSON: &str = "application/json";
pub const MERGE: &str = "application/merge-patch+json";
pub const JSON_PATCH: &str = "application/json-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const APPLY: &str = "application/apply-patch+yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A user in no group of note.
pub fn user(name: &str) -> Option<UserInfo> {
    Some(UserInfo::new(name, ["testers"]))
}

pub fn anonymous() -> Option<UserInfo> {
    Some(UserInfo::anonymous())
}

pub fn admin() -> Option<UserInfo> {
    Some(UserInfo::new("admin", [UserInfo::MASTERS]))
}

/// A request under construction; by the administrator unless told otherwise.
pub struct Request {
    user: Option<UserInfo>,
    builder: http::request::Builder,
    body: Vec<u8>,
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        Self { user: admin(), builder: http::Request::builder().method(method).uri(path), body: Vec::new() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    pub fn content_type(self, value: &str) -> Self {
        self.header("content-type", value)
    }

    pub fn accept(self, value: &str) -> Self {
        self.header("accept", value)
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn from(mut self, user: Option<UserInfo>) -> Self {
        self.user = user;
        self
    }
}

/// An answer that was read to its end.
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    /// Asserts that it is a failure of this code and reason.
    #[track_caller]
    pub fn status(&self, code: u16, reason: &str) -> Value {
        let status = self.json();
        assert_eq!((self.code, status["reason"].as_str()), (code, Some(reason)), "{status}");
        assert_eq!((&status["kind"], &status["code"]), (&"Status".into(), &code.into()), "{status}");
        status
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert!((200..300).contains(&self.code), "{}: {}", self.code, String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.headers.get_all("warning").iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }
}
