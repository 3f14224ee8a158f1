//! What the engine wrote to its log, by job: the ring is one for the whole process, and tests run side by side.

use std::sync::{Mutex, Once};
use std::time::Duration;

use dejq::job::JobId;
use dejq::log;

static BOOK: Mutex<Vec<(JobId, String)>> = Mutex::new(Vec::new());
static READER: Once = Once::new();

/// Starts reading, before the ring can run over.
pub fn open() {
    READER.call_once(|| {
        std::thread::spawn(|| {
            loop {
                log::wait(Duration::MAX);
                copy(&mut BOOK.lock().unwrap());
            }
        });
    });
}

/// The lines about this job so far.
pub fn about(id: JobId) -> Vec<String> {
    let mut book = BOOK.lock().unwrap();
    copy(&mut book);
    book.iter().filter(|(job, _)| *job == id).map(|(_, line)| line.clone()).collect()
}

/// Under the book's lock, so that no line is on its way from the ring to the book when somebody looks.
fn copy(book: &mut Vec<(JobId, String)>) {
    let (records, _) = log::read();
    book.extend(records.into_iter().filter_map(|record| Some((record.job?.id, record.message))));
}
