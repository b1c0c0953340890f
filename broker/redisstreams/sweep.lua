-- Removes from the group ARGV[1] of the stream KEYS[1] the members that have nothing pending and are
-- named ARGV[2] or have been idle for ARGV[3] ms (-1: none). To look and to remove in one step is the
-- point: a member that got an entry in between would lose it for good.
local removed = 0
for _, member in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local info = {}
  for i = 1, #member, 2 do
    info[member[i]] = member[i + 1]
  end
  local limit = tonumber(ARGV[3])
  local stale = limit >= 0 and tonumber(info['idle']) >= limit
  if tonumber(info['pending']) == 0 and (info['name'] == ARGV[2] or stale) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], info['name'])
    removed = removed + 1
  end
end
return removed
