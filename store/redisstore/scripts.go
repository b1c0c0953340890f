package redisstore

import "github.com/redis/go-redis/v9"

// ARGV[1] begins the names of all keys of a group:
//
//	n            the last number given out
//	e:<id>       a delayed message: h head, p payload, s history, a attempts, k order key, o owner, x if blocked
//	due          ids by the time at which they may be taken, or at which their lease ends
//	held         ids that have an owner, by the end of the lease
//	blocked      ids that wait for an earlier one of their order key
//	k:<key>      ids of an order key by the order in which they were stored
//	d:<letter>   a dead letter: i id, m message id, h, p, s, a, k as above, t topic, r reason, w error, at, z size
//	letters      letters by their numbers
//	dead         the letter of an id
//	a:<record>   an audit record; audit: records by their numbers
//
// The first write of each script is one that a full server refuses, so that none is done by half.
const prelude = `
local base = ARGV[1]
local t = redis.call('TIME')
local micros = tonumber(t[1]) * 1000000 + tonumber(t[2])
local now = math.floor(micros / 1000)
local function text(n) return string.format('%.0f', n) end
local function entry(id) return base .. 'e:' .. id end
local function next_number() return redis.call('INCR', base .. 'n') end
local function closed(key) return key ~= '' and redis.call('EXISTS', base .. 'k:' .. key) == 1 end
local function add(id, key, history, head, payload, attempts, delay)
  local waits = closed(key)
  local pos = next_number()
  redis.call('HSET', entry(id), 'h', head, 'p', payload, 's', history, 'a', attempts, 'k', key, 'o', '')
  if key ~= '' then redis.call('ZADD', base .. 'k:' .. key, pos, id) end
  if waits then redis.call('SADD', base .. 'blocked', id)
  else redis.call('ZADD', base .. 'due', text(now + delay), id) end
end
local function holds(id, owner) return owner ~= '' and redis.call('HGET', entry(id), 'o') == owner end
local function revive(id, key, history, head, payload)
  if redis.call('EXISTS', entry(id)) == 0 then return add(id, key, history, head, payload, 0, 0) end
  redis.call('HSET', entry(id), 'a', 0, 'o', '')
  redis.call('ZREM', base .. 'held', id)
  if redis.call('SISMEMBER', base .. 'blocked', id) == 0 then redis.call('ZADD', base .. 'due', text(now), id) end
end
`

func script(body string) *redis.Script { return redis.NewScript(prelude + body) }

// id, order key, history, head, payload
var admit = script(`
if redis.call('EXISTS', entry(ARGV[2])) == 1 then return 1 end
if redis.call('HEXISTS', base .. 'dead', ARGV[2]) == 1 then return 3 end
if not closed(ARGV[3]) then return 0 end
add(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], 0, 0)
return 2`)

// id, order key, history, head, payload, attempts, delay
var deferred = script(`
if redis.call('EXISTS', entry(ARGV[2])) == 0 then
  add(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8]))
elseif tonumber(redis.call('HGET', entry(ARGV[2]), 'a')) < tonumber(ARGV[7]) then
  redis.call('HSET', entry(ARGV[2]), 'a', ARGV[7])
end
return 1`)

// owner, limit, lease. The first value is the time until something more is due, or -1.
var take = script(`
local due = redis.call('ZRANGEBYSCORE', base .. 'due', '-inf', text(now), 'LIMIT', 0, ARGV[3])
local answer = {-1}
local ends = text(now + tonumber(ARGV[4]))
for _, id in ipairs(due) do
  redis.call('HSET', entry(id), 'o', ARGV[2])
  redis.call('ZADD', base .. 'due', ends, id)
  redis.call('ZADD', base .. 'held', ends, id)
  local v = redis.call('HMGET', entry(id), 'a', 's', 'h', 'p')
  for i = 1, 4 do answer[#answer + 1] = v[i] or '' end
end
local first = redis.call('ZRANGE', base .. 'due', 0, 0, 'WITHSCORES')
if first[1] then answer[1] = math.max(0, tonumber(first[2]) - now) end
return answer`)

// id, owner, lease
var renew = script(`
if not holds(ARGV[2], ARGV[3]) then return 0 end
local ends = text(now + tonumber(ARGV[4]))
redis.call('ZADD', base .. 'due', ends, ARGV[2])
redis.call('ZADD', base .. 'held', ends, ARGV[2])
return 1`)

// id, owner, attempt
var begin = script(`
if not holds(ARGV[2], ARGV[3]) then return 0 end
if tonumber(redis.call('HGET', entry(ARGV[2]), 'a')) < tonumber(ARGV[4]) then redis.call('HSET', entry(ARGV[2]), 'a', ARGV[4]) end
return 1`)

// id, owner, attempts, history, delay
var giveBack = script(`
if not holds(ARGV[2], ARGV[3]) then return 0 end
redis.call('HSET', entry(ARGV[2]), 'o', '', 'a', ARGV[4], 's', ARGV[5])
redis.call('ZREM', base .. 'held', ARGV[2])
redis.call('ZADD', base .. 'due', text(now + tonumber(ARGV[6])), ARGV[2])
return 1`)

// id, owner
var forget = script(`
if not holds(ARGV[2], ARGV[3]) then return 0 end
local key = redis.call('HGET', entry(ARGV[2]), 'k')
redis.call('DEL', entry(ARGV[2]))
redis.call('ZREM', base .. 'due', ARGV[2])
redis.call('ZREM', base .. 'held', ARGV[2])
if key ~= '' then
  redis.call('ZREM', base .. 'k:' .. key, ARGV[2])
  local first = redis.call('ZRANGE', base .. 'k:' .. key, 0, 0)[1]
  if first and redis.call('SREM', base .. 'blocked', first) == 1 then redis.call('ZADD', base .. 'due', text(now), first) end
end
return 1`)

var stats = script(`
local blocked = redis.call('SCARD', base .. 'blocked')
return {redis.call('ZCARD', base .. 'due') + blocked, redis.call('ZCOUNT', base .. 'due', '-inf', text(now)),
  redis.call('ZCOUNT', base .. 'held', '(' .. text(now), '+inf'), blocked, redis.call('ZCARD', base .. 'letters')}`)

// id, order key, history, head, payload, attempts, message id, topic, reason, error
var put = script(`
if redis.call('HEXISTS', base .. 'dead', ARGV[2]) == 1 then return 0 end
local letter = next_number()
redis.call('HSET', base .. 'd:' .. letter, 'i', ARGV[2], 'k', ARGV[3], 's', ARGV[4], 'h', ARGV[5], 'p', ARGV[6], 'a', ARGV[7],
  'm', ARGV[8], 't', ARGV[9], 'r', ARGV[10], 'w', ARGV[11], 'at', text(micros), 'z', string.len(ARGV[6]))
redis.call('ZADD', base .. 'letters', letter, letter)
redis.call('HSET', base .. 'dead', ARGV[2], letter)
return 1`)

// action, who, why, "1" if edited, then id, order key, history, head, payload, message id of the edited
// message, then the letters
var decide = script(`
local done = {}
for i = 12, #ARGV do
  local letter = ARGV[i]
  local v = redis.call('HMGET', base .. 'd:' .. letter, 'i', 'k', 's', 'h', 'p', 'm')
  if v[1] then
    local record = next_number()
    redis.call('HSET', base .. 'a:' .. record, 'at', text(micros), 'action', ARGV[2], 'letter', letter, 'id', v[6],
      'new', ARGV[11], 'who', ARGV[3], 'why', ARGV[4])
    redis.call('ZADD', base .. 'audit', record, record)
    redis.call('DEL', base .. 'd:' .. letter)
    redis.call('ZREM', base .. 'letters', letter)
    redis.call('HDEL', base .. 'dead', v[1])
    if ARGV[2] == 'replay' then
      if ARGV[5] == '1' then revive(ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10])
      else revive(v[1], v[2], v[3], v[4], v[5]) end
    end
    done[#done + 1] = tonumber(letter)
  end
end
return done`)

// prefix of the records, the set of their numbers, after, limit, fields
var page = script(`
local answer = {}
for _, n in ipairs(redis.call('ZRANGEBYSCORE', base .. ARGV[3], '(' .. ARGV[4], '+inf', 'LIMIT', 0, ARGV[5])) do
  answer[#answer + 1] = n
  for _, v in ipairs(redis.call('HMGET', base .. ARGV[2] .. n, unpack(ARGV, 6))) do answer[#answer + 1] = v or '' end
end
return answer`)
