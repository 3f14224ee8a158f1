//! Waking an event loop from threads that have no interpreter: a byte in a socket that the loop watches. A burst costs
//! one byte.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

use super::errors::to_py;
use crate::error::{Error, ErrorKind};

/// The end that the loop watches.
pub struct Bell {
    reader: UnixStream,
    rope: Arc<Rope>,
}

/// The end that anybody may pull.
pub struct Rope {
    writer: UnixStream,
    is_rung: AtomicBool,
}

impl Bell {
    /// # Errors
    /// `BackendUnavailable` when the system gives no socket.
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        let failed = |error: std::io::Error| {
            let error = Error::new(ErrorKind::Unavailable, "no socket for the event loop").with_source(error);
            to_py(py, &error)
        };
        let (reader, writer) = UnixStream::pair().map_err(failed)?;
        reader.set_nonblocking(true).map_err(failed)?;
        writer.set_nonblocking(true).map_err(failed)?;
        Ok(Self { reader, rope: Arc::new(Rope { writer, is_rung: AtomicBool::new(false) }) })
    }

    /// For those who have something to say.
    pub fn rope(&self) -> Arc<Rope> {
        Arc::clone(&self.rope)
    }

    /// Becomes readable when the rope is pulled.
    pub fn fileno(&self) -> i32 {
        self.reader.as_raw_fd()
    }

    /// The loop is awake. Called before it looks at anything, so that what comes in between wakes it again.
    pub fn heard(&self) {
        let _ = (&self.reader).read(&mut [0; 8]);
        self.rope.is_rung.store(false, Ordering::SeqCst);
    }
}

impl Rope {
    /// Never waits, and needs no interpreter.
    pub fn pull(&self) {
        if !self.is_rung.swap(true, Ordering::SeqCst) {
            // A full socket holds a byte already, and that is all it is for.
            let _ = (&self.writer).write(&[1]);
        }
    }
}
