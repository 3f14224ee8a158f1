//! What a worker refuses to start with.

use std::num::NonZeroU32;
use std::sync::Arc;

use dejq::backend::{Backend, Options};
use dejq::error::ErrorKind;
use dejq::worker::{Handlers, Worker, WorkerConfig};
use tokio::runtime::Handle;

use crate::stage::{Stage, async_spec, job_type, slots, spec};

#[tokio::test]
async fn a_worker_without_handlers_is_refused_with_what_to_type() {
    let stage = Stage::new();
    let backend: Arc<dyn Backend> = Arc::clone(&stage.store) as _;
    let before = Handle::current().metrics().num_alive_tasks();
    let error = Worker::start(&Handle::current(), backend, Handlers::default(), slots(1)).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    assert!(error.text().contains("@client.handler("), "{error}");
    assert_eq!(Handle::current().metrics().num_alive_tasks(), before);
}

#[test]
fn a_second_handler_for_a_type_is_refused_with_what_to_type() {
    let mut handlers = Handlers::default();
    assert_eq!(handlers.add(spec("email")).unwrap(), 0);
    assert_eq!(handlers.add(spec("sms")).unwrap(), 1);
    let error = handlers.add(async_spec("email")).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    assert!(error.text().contains("\"email\" has a handler already") && error.text().contains("email:v2"));
    assert_eq!((handlers.all().len(), handlers.find(&job_type("sms"))), (2, Some(1)));
    assert_eq!(handlers.find(&job_type("fax")), None);
}

fn config(given: &[(&str, &str)]) -> Result<WorkerConfig, String> {
    let mut options =
        Options::new(given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let config = WorkerConfig::from_options(&mut options).map_err(|error| error.to_string())?;
    options.finish().map_err(|error| error.to_string())?;
    Ok(config)
}

#[test]
fn settings_come_from_options_by_name() {
    let given = [
        ("workers", "3"),
        ("async_workers", "7"),
        ("heartbeat", "0.5"),
        ("max_beats", "9"),
        ("max_attempts", "4"),
        ("max_rescues", "0"),
    ];
    let config = config(&given).unwrap();
    assert_eq!((config.workers, config.async_workers, config.max_rescues), (3, 7, 0));
    assert_eq!(
        (config.lease().as_millis(), config.max_beats, config.max_attempts),
        (1500, Some(9), NonZeroU32::new(4))
    );
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = config(&[]).unwrap();
    assert_eq!((config.heartbeat.as_secs(), config.lease().as_secs(), config.max_beats), (5, 15, None));
    assert_eq!((config.max_attempts, config.max_rescues), (None, 3));
    assert!(config.workers >= 1);
}

#[test]
fn a_setting_that_makes_no_sense_is_refused_by_name() {
    for (name, value, part) in [
        ("workers", "0", "workers=\"0\" must be a whole number of at least 1"),
        ("workers", "20000", "more threads than a process should have"),
        ("async_workers", "many", "async_workers=\"many\""),
        ("heartbeat", "0.001", "at least 0.01"),
        ("heartbeat", "-1", "heartbeat=\"-1\""),
        ("heartbeat", "NaN", "heartbeat=\"NaN\""),
        ("max_beats", "0", "max_beats=\"0\""),
        ("max_attempts", "0", "max_attempts=\"0\""),
        ("max_rescues", "-1", "max_rescues=\"-1\""),
        ("heartbeet", "1", "did you mean \"heartbeat\""),
    ] {
        let text = config(&[(name, value)]).unwrap_err();
        assert!(text.contains(part), "{name}={value}: {text}");
    }
}
