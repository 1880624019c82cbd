//! What the API is told of limits is what the machine has.

use supermachine_machine::{Architecture, Engine};
use supermachine_proto::limits::MAX_VCPUS;

#[test]
fn the_api_knows_the_machines_limits() {
    for engine in Engine::ALL {
        let map = Architecture::of(engine).map();
        let known = MAX_VCPUS.iter().find(|(architecture, _)| *architecture == map.architecture);
        assert_eq!(known, Some(&(map.architecture, map.max_vcpus)), "{engine}");
    }
}
