# One surface for the project's commands: each recipe runs cargo, or the script that does the work and says more.
# `.ci/tool just` runs it where just is not installed.

[private]
default:
    @just --list --unsorted

# what CI does, whole: some 50 minutes on two cores
ci:
    .ci/run

# formatting, prose, links, lints, dependencies
check:
    cargo fmt --all --check
    .ci/prose
    .ci/links
    cargo clippy --workspace --all-targets --locked -- -D warnings
    .ci/deny

# all unit and integration tests, or those that a filter names
test *FILTER:
    cargo test --workspace --locked {{FILTER}}

# the integration tests on hyper's HTTP/2: [FILTER...]
hyper *FILTER:
    tests/hyper {{FILTER}}

# the integration tests within TLS: [FILTER...]
tls *FILTER:
    tests/tls {{FILTER}}

# the program met by software of others: [pytest's arguments]
external *ARGS:
    tests/external/run {{ARGS}}

# crashes and broken disks: [MODE...] [--full] [--seed N]
crash *ARGS:
    tests/crash/run {{ARGS}}

# the fuzz targets: [TARGET...] [--seconds N]
fuzz *ARGS:
    fuzz/run {{ARGS}}

# measures, and writes docs/performance.md: [SECTION...]
bench *ARGS:
    benches/run {{ARGS}}

# instructions of a verdict against those kept: [--update]
instructions *ARGS:
    benches/instructions {{ARGS}}

# a flame graph of Verify
profile:
    benches/profile

# the files in deploy/
deploy:
    deploy/check

# licences, sources and duplicates of dependencies
deny:
    .ci/deny

# dependencies against RustSec's database; needs the network
advisories:
    .ci/deny advisories

# the program's dependencies as CycloneDX, on standard output
sbom:
    .ci/sbom
