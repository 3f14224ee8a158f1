#!/bin/sh
# The rules of the layers (docs/architecture.md), as far as a search can see them. Run by `make lint`.
set -eu
cd "$(dirname "$0")/.."
broken=0

refuse() { # refuse WHY PATTERN PATHS…
    why=$1 pattern=$2
    shift 2
    if found=$(grep -rnE "$pattern" "$@"); then
        printf '%s:\n%s\n\n' "$why" "$found"
        broken=1
    fi
}

core="src/job.rs src/error.rs src/log.rs src/backend src/worker src/metrics"
# shellcheck disable=SC2086 # the list is meant to be split
refuse "Python is known only in src/py" '\b(pyo3|Py<|PyResult|asyncio)\b' $core
refuse "a backend does not know the worker" 'crate::(worker|py)' src/backend src/job.rs src/error.rs src/log.rs
refuse "a backend and the worker do not know the metrics" 'crate::metrics' src/backend src/worker src/job.rs src/error.rs src/log.rs
refuse "the worker knows the trait and no store" 'backend::(memory|postgres|redis|sqs)|MemoryBackend' src/worker
refuse "SQL lives in files of its own" '"[[:space:]]*(SELECT|INSERT|UPDATE|DELETE) ' src --include=*.rs
refuse "only py/runtime.rs blocks" 'block_on\(' src --include=*.rs --exclude=runtime.rs
refuse "nothing is left for later, printed, or ended by force" '\b(dbg!|todo!|unimplemented!|println!|process::exit)' src --include=*.rs

if cargo tree -e normal --no-default-features --prefix none | grep -q '^pyo3'; then
    echo "the core must build without pyo3, and cargo tree shows it"
    broken=1
fi
exit $broken
