from jaxgpt.parallel import hlo

PROGRAM = """\
HloModule step, num_partitions=4

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %g = f32[8,8]{1,0} all-gather(%x), channel_id=7, replica_groups=mesh['a'=2,'b'=2] \
{'b'}, dimensions={0}
  %d = f32[8,8]{1,0} fusion(%g), kind=kLoop, calls=%done
  %l = f32[8,8]{1,0} fusion(%y), kind=kOutput, calls=%step
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %y)
}

%start (x: f32[4,8]) -> (f32[4,8], f32[8,8]) {
  %g.2 = f32[8,8]{1,0} all-gather(%x), channel_id=9, replica_groups={{0,1},{2,3}}
  ROOT %c = (f32[4,8], f32[8,8]) custom-call(%g.2), \
custom_call_target="AsyncCollectiveStart"
}

%step (x: f32[4,8]) -> f32[8,8] {
  %g.3 = f32[8,8]{1,0} all-gather(%x), channel_id=9, replica_groups={{0,1},{2,3}}
}

%done (x: f32[4,8]) -> f32[8,8] {
  %g.1 = f32[8,8]{1,0} all-gather(%x), channel_id=7, replica_groups={{0,1},{2,3}}
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%fused (q: f32[4]) -> f32[4] {
  %s = f32[4]{0} collective-permute(%q), source_target_pairs={{0,1}}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %u = (f32[4,8], f32[8,8]) fusion(%v), kind=kCustom, calls=%start
  %w = (s32[], f32[4,8]) while(%init), condition=%condition, body=%body
  %f = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused
  %r = (f32[6]{0}, bf16[4]{0}) all-reduce(%b, %d), \
replica_groups=mesh['a'=2,'b'=8] {'a','b':(2)2}
  %o = (f32[2]{0}, f32[8]{0}) all-gather-start(%e), replica_groups=[1,4]<=[4]
  ROOT %h = f32[4]{0} reduce-scatter(%k), replica_groups={{0,1,2,3}}
}
"""


def test_collectives_count_as_often_as_their_loop_runs():
    found = hlo.collectives(PROGRAM)
    # Half of 8 x 8 floats twelve times, though its text stands there twice; and once,
    # while the loop runs.
    assert found["all-gather"] == hlo.Traffic(14, 13 * 0.5 * 256 + 0.75 * 32)
    assert found["all-reduce"] == hlo.Traffic(1, 2 * 0.75 * (24 + 8))
    assert found["reduce-scatter"] == hlo.Traffic(1, 0.75 * 16 * 4)
    assert found["collective-permute"] == hlo.Traffic(1, 16)
