//! What the API is told of limits is what the machine has.

use supermachine_machine::{Architecture, Engine};
use supermachine_proto::worker::{MAX_MEMORY, MAX_VCPUS, MIN_MEMORY};

#[test]
fn the_api_knows_the_machines_limits() {
    assert_eq!(
        (MIN_MEMORY, MAX_MEMORY),
        (supermachine_machine::MIN_MEMORY, supermachine_machine::MAX_MEMORY)
    );
    for engine in [Engine::Soft, Engine::Hvf, Engine::Kvm] {
        let map = Architecture::of(engine).map();
        let known = MAX_VCPUS.iter().find(|(architecture, _)| *architecture == map.architecture);
        assert_eq!(known, Some(&(map.architecture, map.max_vcpus)), "{engine}");
    }
}
