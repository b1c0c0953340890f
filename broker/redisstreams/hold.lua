-- Says of the pending entries ARGV[4...] of the stream KEYS[1] that they have been idle for ARGV[3] ms,
-- if the member ARGV[2] of the group ARGV[1] holds them. Answers with those that other members hold.
local mine, others = {}, {}
for i = 4, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if pending[1] then
    if pending[1][2] == ARGV[2] then
      mine[#mine + 1] = ARGV[i]
    else
      others[#others + 1] = ARGV[i]
    end
  end
end
for i = 1, #mine do
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, mine[i], 'IDLE', ARGV[3], 'JUSTID')
end
return others
