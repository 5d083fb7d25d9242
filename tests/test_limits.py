from relay.limits import PipelineConfig


def test_the_defaults_are_the_documented_ones() -> None:
    assert PipelineConfig() == PipelineConfig(
        queue_size=2048,
        queue_max_bytes=16 * 1024 * 1024,
        batch_size=512,
        schedule_delay=5.0,
        export_max_bytes=4_000_000,
        max_concurrent_exports=4,
    )
