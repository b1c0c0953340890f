package redisstore

import (
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/store/internal/form"
)

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
local function bury(id, key, history, head, payload, attempts, name, topic, reason, err)
  if redis.call('HEXISTS', base .. 'dead', id) == 1 then return end
  local letter = next_number()
  redis.call('HSET', base .. 'd:' .. letter, 'i', id, 'k', key, 's', history, 'h', head, 'p', payload, 'a', attempts,
    'm', name, 't', topic, 'r', reason, 'w', err, 'at', text(micros), 'z', string.len(payload))
  redis.call('ZADD', base .. 'letters', letter, letter)
  redis.call('HSET', base .. 'dead', id, letter)
end
local function remove(id)
  local key = redis.call('HGET', entry(id), 'k') or ''
  redis.call('DEL', entry(id))
  redis.call('ZREM', base .. 'due', id)
  redis.call('ZREM', base .. 'held', id)
  if key == '' then return end
  redis.call('ZREM', base .. 'k:' .. key, id)
  local first = redis.call('ZRANGE', base .. 'k:' .. key, 0, 0)[1]
  if first and redis.call('SREM', base .. 'blocked', first) == 1 then redis.call('ZADD', base .. 'due', text(now), first) end
end
local function holds(id, owner) return owner ~= '' and redis.call('HGET', entry(id), 'o') == owner end
local function revive(id, key, head, payload)
  local none = '` + form.NoHistory + `'
  if redis.call('EXISTS', entry(id)) == 0 then return add(id, key, none, head, payload, 0, 0) end
  redis.call('HSET', entry(id), 'a', 0, 's', none, 'o', '')
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
  answer[#answer + 1] = id
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
remove(ARGV[2])
return 1`)

// id, owner, message id, topic, reason, error
var setAside = script(`
if not holds(ARGV[2], ARGV[3]) then return 0 end
local v = redis.call('HMGET', entry(ARGV[2]), 'k', 's', 'h', 'p', 'a')
bury(ARGV[2], v[1] or '', v[2] or '', v[3] or '', v[4] or '', v[5] or 0, ARGV[4], ARGV[5], ARGV[6], ARGV[7])
remove(ARGV[2])
return 1`)

var stats = script(`
local blocked = redis.call('SCARD', base .. 'blocked')
return {redis.call('ZCARD', base .. 'due') + blocked, redis.call('ZCOUNT', base .. 'due', '-inf', text(now)),
  redis.call('ZCOUNT', base .. 'held', '(' .. text(now), '+inf'), blocked, redis.call('ZCARD', base .. 'letters')}`)

// id, order key, history, head, payload, attempts, message id, topic, reason, error
var put = script(`
bury(unpack(ARGV, 2, 11))
return 1`)

// action, who, why, "1" if edited, then id, order key, head, payload, message id of the edited message, then
// the letters
var decide = script(`
local done = {}
for i = 11, #ARGV do
  local letter = ARGV[i]
  local v = redis.call('HMGET', base .. 'd:' .. letter, 'i', 'k', 'h', 'p', 'm')
  if v[1] then
    local record = next_number()
    redis.call('HSET', base .. 'a:' .. record, 'at', text(micros), 'action', ARGV[2], 'letter', letter, 'id', v[5],
      'new', ARGV[10], 'who', ARGV[3], 'why', ARGV[4])
    redis.call('ZADD', base .. 'audit', record, record)
    redis.call('DEL', base .. 'd:' .. letter)
    redis.call('ZREM', base .. 'letters', letter)
    redis.call('HDEL', base .. 'dead', v[1])
    if ARGV[2] == 'replay' then
      if ARGV[5] == '1' then revive(ARGV[6], ARGV[7], ARGV[8], ARGV[9])
      else revive(v[1], v[2], v[3], v[4]) end
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
