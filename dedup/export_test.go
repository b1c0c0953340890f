package dedup

// Len is the number of records in memory, forgotten ones that nobody swept included.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.records)
}
