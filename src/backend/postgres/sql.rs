//! The statements, each in a file of its own, for one schema.

use super::schema::Schema;

macro_rules! statements {
    ($($name:ident),* $(,)?) => {
        /// Every statement that is sent more than once.
        #[derive(Debug)]
        pub(super) struct Sql {
            $(pub $name: String,)*
        }

        impl Sql {
            pub fn new(schema: &Schema) -> Self {
                Self { $($name: schema.sql(include_str!(concat!("sql/", stringify!($name), ".sql"))),)* }
            }
        }
    };
}

statements! {
    beat, cancel, check, claim, copy, delete_finished, enqueue_in_transaction, enqueue_jobs, finish,
    finish_in_transaction, get, insert, leave, list, passed_over, promote, put_back, requeue,
    rescue, settle, stats, stored, unresponsive, unstrand, vacuum, wake, workers,
}
