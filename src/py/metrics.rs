//! Metrics as the facade and the command line see them.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use pyo3::prelude::*;

use super::errors::to_py;
use super::runtime::{handle, wait_for_server};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{self, Source};

/// The processes of a supervisor, as one source of metrics.
#[pyclass(frozen, module = "dejq._native")]
pub struct Team {
    inner: Arc<metrics::Team>,
}

#[pymethods]
impl Team {
    #[new]
    fn new() -> Self {
        Self { inner: Arc::default() }
    }

    /// Takes up a process that reports over this socket, whose file descriptor is given away.
    fn add(&self, py: Python<'_>, number: u32, socket: i32) -> PyResult<()> {
        let add = || {
            self.inner.add(&handle()?, number, socket_from(socket)).map_err(|error| {
                Error::new(ErrorKind::Unavailable, "no metrics of a process: its socket is of no use")
                    .with_source(error)
            })
        };
        add().map_err(|error| to_py(py, &error))
    }

    /// The process has ended; its counters stay.
    fn remove(&self, py: Python<'_>, number: u32) -> PyResult<()> {
        wait_for_server(py, async {
            self.inner.remove(number).await;
            Ok(())
        })
    }

    /// A process was started in place of another.
    fn restarted(&self) {
        self.inner.restarted();
    }

    /// Serves the sums at `HOST:PORT`; returns the address.
    fn serve(&self, py: Python<'_>, address: &str) -> PyResult<String> {
        serve(py, address, Arc::clone(&self.inner) as _)
    }
}

/// What a process tells its supervisor.
#[pyclass(frozen, module = "dejq._native")]
pub struct Reporter {
    inner: metrics::Reporter,
}

impl Reporter {
    /// Over a socket whose file descriptor is given away.
    pub fn start(socket: i32, source: Arc<dyn Source>) -> Result<Self> {
        let inner = metrics::Reporter::start(&handle()?, socket_from(socket), source).map_err(|error| {
            Error::new(ErrorKind::Unavailable, "no metrics for the supervisor: its socket is of no use")
                .with_source(error)
        })?;
        Ok(Self { inner })
    }
}

#[pymethods]
impl Reporter {
    /// Sends what was counted, for the last time.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        wait_for_server(py, async {
            self.inner.finish().await;
            Ok(())
        })
    }
}

/// Serves a source until the process ends.
pub fn serve(py: Python<'_>, address: &str, source: Arc<dyn Source>) -> PyResult<String> {
    let server = wait_for_server(py, metrics::bind(address))?;
    let address = server.address().to_string();
    handle().map_err(|error| to_py(py, &error))?.spawn(server.serve(source));
    Ok(address)
}

#[allow(unsafe_code)] // there is no safe way from a number to a file descriptor
fn socket_from(fd: i32) -> UnixStream {
    // SAFETY: the facade gives a socket away (`socket.detach()`), so the descriptor is open and nobody else's.
    UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) })
}
