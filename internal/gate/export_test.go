package gate

func Waiting(g *Gate) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting.Len()
}
