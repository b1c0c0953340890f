package redisdedup

import "github.com/redis/go-redis/v9"

// The record is a hash: s state (P claimed, F released, D done), f fence, o owner, e end of the lease
// in the server's milliseconds, n attempts, d digest, r result. Each script touches this one key, so
// Cluster needs no hash tag and spreads the records of a consumer over all nodes.
//
// The owner stays in the record when it is done: a Done whose answer was lost is sent again by the
// client and has to be told from the Done of somebody who lost.

var claim = redis.NewScript(`
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local v = redis.call('HMGET', KEYS[1], 's', 'f', 'o', 'e', 'n', 'd', 'r')
local state, fence, attempts = v[1], tonumber(v[2] or '0'), tonumber(v[5] or '0')
local digest = v[6] or ''
if digest ~= '' and ARGV[4] ~= '' and digest ~= ARGV[4] then return {'REUSED', 0, ''} end
if state == 'D' then return {'DONE', 0, v[7] or ''} end
local mine = state == 'P' and v[3] == ARGV[1]
if state == 'P' and not mine and tonumber(v[4]) > now then return {'BUSY', tonumber(v[4]) - now, ''} end
if not mine then fence = fence + 1; attempts = attempts + 1 end
if digest == '' then digest = ARGV[4] end
redis.call('HSET', KEYS[1], 's', 'P', 'f', fence, 'o', ARGV[1],
  'e', string.format('%.0f', now + tonumber(ARGV[2])), 'n', attempts, 'd', digest)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {'CLAIMED', fence, attempts}`)

// The record outlives the lease, or a claim of something handled for longer than it is remembered
// would vanish under its owner.
var renew = redis.NewScript(`
local v = redis.call('HMGET', KEYS[1], 's', 'o')
if v[1] ~= 'P' or v[2] ~= ARGV[1] then return 0 end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local lease = tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'e', string.format('%.0f', now + lease))
if redis.call('PTTL', KEYS[1]) < 2 * lease then redis.call('PEXPIRE', KEYS[1], 2 * lease) end
return 1`)

var done = redis.NewScript(`
local v = redis.call('HMGET', KEYS[1], 's', 'o')
if v[1] and v[2] ~= ARGV[1] then return 'LOST' end
redis.call('HSET', KEYS[1], 's', 'D', 'o', ARGV[1], 'r', ARGV[2])
redis.call('HDEL', KEYS[1], 'e', 'n', 'f')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if v[1] then return 'OK' else return 'RECREATED' end`)

var release = redis.NewScript(`
local v = redis.call('HMGET', KEYS[1], 's', 'o')
if v[1] ~= 'P' or v[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 's', 'F')
redis.call('HDEL', KEYS[1], 'o', 'e')
if ARGV[2] == '1' then redis.call('HSET', KEYS[1], 'n', 0) end
return 1`)
