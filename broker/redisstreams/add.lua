-- Adds entries to the stream KEYS[1], in order.
-- ARGV, for each entry: its group, the number of its fields and values, its fields and values.
-- Answers {} if all went in, else {number, error, number, error, ...} of those that did not. An entry
-- behind a failed one of its group is not tried and not named.
-- If the first entry fails, the script fails with its error and has written nothing.
local failed, stopped = {}, {}
local at, number = 1, 0
while at <= #ARGV do
  number = number + 1
  local group, count = ARGV[at], tonumber(ARGV[at + 1])
  if not stopped[group] then
    local added = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, at + 2, at + 1 + count))
    if type(added) == 'table' and added.err then
      if number == 1 then
        return added
      end
      failed[#failed + 1] = number
      failed[#failed + 1] = added.err
      stopped[group] = true
    end
  end
  at = at + 2 + count
end
return failed
