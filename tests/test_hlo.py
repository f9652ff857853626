from jaxgpt import hlo

PROGRAM = """\
HloModule step, num_partitions=4

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %g = f32[8,8]{1,0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %y)
}

%fused (q: f32[4]) -> f32[4] {
  %s = f32[4]{0} collective-permute(%q), source_target_pairs={{0,1}}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (s32[], f32[4,8]) while(%init), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"12"}}
  %f = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused
  %r = (f32[6]{0}, bf16[4]{0}) all-reduce(%b, %d), replica_groups=[1,4]<=[4]
  %o = (f32[2]{0}, f32[8]{0}) all-gather-start(%e), replica_groups=[1,4]<=[4]
  ROOT %h = f32[4]{0} reduce-scatter(%k), replica_groups={{0,1,2,3}}
}
"""


def test_collectives_count_as_often_as_their_loop_runs():
    found = hlo.collectives(PROGRAM)
    # Half of 8 x 8 floats twelve times; three quarters of 8 floats once.
    assert found["all-gather"] == hlo.Traffic(13, 12 * 0.5 * 256 + 0.75 * 32)
    assert found["all-reduce"] == hlo.Traffic(1, 2 * 0.75 * (24 + 8))
    assert found["reduce-scatter"] == hlo.Traffic(1, 0.75 * 16 * 4)
    assert found["collective-permute"] == hlo.Traffic(1, 16)
